"""What all trained modules share: the optimizer, its schedule, and the gradient's norm."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class OptimizedModule(pl.LightningModule):
    """A LightningModule with an optimizer over its trained parameters and a schedule in optimizer steps."""

    optimizer: OptimizerFactory
    lr_scheduler: SchedulerFactory | None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by the model that they belong to; the first group is the main one."""
        raise NotImplementedError

    def held_models(self) -> dict[str, nn.Module]:
        """The models in memory by their part in training, the engine's copy apart; they may share weights."""
        raise NotImplementedError

    def learning_rates(self) -> dict[str, float | None]:
        """The learning rate of each group that has one of its own; null for the optimizer's."""
        return {}

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        rates = {name: lr for name, lr in self.learning_rates().items() if lr is not None}
        groups: list[dict[str, Any]] = [
            {"params": parameters} | ({"lr": rates[name]} if name in rates else {})
            for name, parameters in self.parameter_groups().items()
            if parameters
        ]
        optimizer = self.optimizer(groups)  # type: ignore[arg-type]
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the norm of each model's gradient before clipping, and clip each by its own.

        A common norm would let a critic's gradient shrink the policy's step. Lightning's own clipping refuses
        fused optimizers and FSDP.
        """
        for i, (name, parameters) in enumerate(self.parameter_groups().items()):
            if not parameters:
                continue
            kinds = by_mesh(parameters)
            norm = total_norm(kinds, flat_shards=isinstance(self.trainer.strategy, FSDPStrategy))
            key = f"train/{name}_grad_norm" if i else "train/grad_norm"
            self.log(key, norm, on_step=False, on_epoch=True, batch_size=1)
            if not kinds or not gradient_clip_val:
                continue
            if gradient_clip_algorithm == "value":
                torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                for kind in kinds:
                    torch.nn.utils.clip_grads_with_norm_(kind, gradient_clip_val, norm)


def by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those with a gradient, by the ranks that it is divided among: torch mixes no two kinds."""
    kinds: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter)
    return list(kinds.values())


def total_norm(kinds: Iterable[list[nn.Parameter]], flat_shards: bool) -> Tensor:
    """The L2 norm of whole gradients, the same on every rank; collective where they are divided.

    Args:
        kinds: Parameters by the ranks that their gradients are divided among.
        flat_shards: Whether they are parts of FSDP1's flat parameters, which do not say so themselves.
    """
    norms = [torch.nn.utils.get_total_norm([p.grad for p in kind]) for kind in kinds]  # type: ignore[misc]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.zeros(())
    if flat_shards:
        square = total.square()
        torch.distributed.all_reduce(square)
        total = square.sqrt()
    return total


def num_parameters(models: Iterable[nn.Module]) -> int:
    """The parameters of some models, shared ones once."""
    return sum({id(p): p.numel() for model in models for p in model.parameters()}.values())
