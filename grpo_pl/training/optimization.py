"""The base of all trained modules: the optimizer, its schedule, and the gradient's norm."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from grpo_pl.functional import one_if_finite
from grpo_pl.models import ModelBuilder
from grpo_pl.runs.same_model import check_fits, check_settings
from grpo_pl.system.refusal import about
from grpo_pl.training.gradients import by_mesh, clip, taken, total_norm
from grpo_pl.training.master_weights import with_masters
from grpo_pl.training.ranks import num_shards
from grpo_pl.training.skipped_steps import SkippedStep, Source, explain

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
SETTINGS = "settings_of_weights"
"""The key in a checkpoint of the arguments that its weights depend on, by model."""


class OptimizedModule(pl.LightningModule):
    """A LightningModule with an optimizer over its trained parameters and a schedule in optimizer steps.

    If the loss or gradient is not finite on some rank, no rank takes the step: weights and optimizer stay
    unchanged, and the schedule goes on. `train/skipped_steps` counts such steps.

    `train/empty_steps` counts the steps in which the gradient of the main group is exactly 0 on all ranks:
    the optimizer's momentum and weight decay move it all the same, unless `empty_steps` says `skip`.
    """

    optimizer: OptimizerFactory
    lr_scheduler: SchedulerFactory | None
    empty_steps: Literal["take", "skip"] = "take"
    skipped: SkippedStep | None = None
    """Explains why the last optimizer step was skipped; None if it was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.builders: dict[str, ModelBuilder | None] = {}
        self._watched: dict[str, list[Tensor]] = {}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by the model that they belong to; the first group is the main one."""
        raise NotImplementedError

    def learns(self, group: str) -> bool:  # noqa: ARG002 - for those that override it
        """Whether a group of parameters learns in this iteration; of one that rests nothing is measured."""
        return True

    def held_models(self) -> dict[str, nn.Module]:
        """The models in memory by role, without the engine's copy; they may share weights."""
        raise NotImplementedError

    def learning_rates(self) -> dict[str, float | None]:
        """The learning rates of groups; None, as for all others, for the optimizer's."""
        return {}

    def term_sources(self) -> dict[str, Source]:
        """The terms of the objective, by their names in `guarded`."""
        return {}

    def frozen_weights(self) -> dict[str, Tensor]:
        """Weights that stay pretrained, and so are in no checkpoint."""
        return {}

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        rates = {name: lr for name, lr in self.learning_rates().items() if lr is not None}
        groups: list[dict[str, Any]] = [
            {"params": parameters} | ({"lr": rates[name]} if name in rates else {})
            for name, parameters in self.parameter_groups().items()
            if parameters
        ]
        optimizer = with_masters(self.optimizer, groups)  # type: ignore[arg-type]
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    @override
    def on_train_epoch_start(self) -> None:
        """Forget the last iteration's metrics: Lightning would repeat one that is not measured again."""
        measured = self.trainer.callback_metrics
        for key in [key for key in measured if not key.startswith("val")]:
            del measured[key]

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the frozen weights; add what the others depend on."""
        builders = {name: builder for name, builder in self.builders.items() if builder is not None}
        checkpoint[SETTINGS] = {name: builder.settings_of_weights() for name, builder in builders.items()}
        if self._keeps_whole_checkpoints:
            for name in self.frozen_weights():
                checkpoint["state_dict"].pop(name, None)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen weights of the pretrained model; refuse the weights of another run."""
        self.check_settings(checkpoint.get(SETTINGS, {}))
        if "state_dict" in checkpoint:  # else the strategy has loaded all of it, shard by shard
            checkpoint["state_dict"] = self.frozen_weights() | checkpoint["state_dict"]
        if self._keeps_whole_checkpoints:  # the strategy checks shards
            configured = self.configure_optimizers() if self.trainer.training else None
            check_fits(checkpoint, self.state_dict(), configured)

    def check_settings(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse arguments of models with which a checkpoint's weights would mean something else."""
        for name, builder in self.builders.items():
            if builder is not None:
                with about(builder):
                    check_settings(stored.get(name, {}), builder.settings_of_weights())

    @property
    def _keeps_whole_checkpoints(self) -> bool:
        """Whether a checkpoint is one file with the content of rank 0."""
        return num_shards(self.trainer) == 1

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the norm of each model's gradient before clipping, and clip each by its own.

        A common norm would let a critic's gradient shrink the policy's step. Lightning's own clipping refuses
        fused optimizers and FSDP. If a norm is not finite, the optimizer gets no gradient.
        """
        main, *_ = parameters = {name: group for name, group in self.parameter_groups().items() if group}
        groups = {name: by_mesh(group) for name, group in parameters.items() if self.learns(name)}
        norms: dict[str, Tensor] = {}
        for name, kinds in groups.items():
            norms[name] = total_norm(kinds, flat_shards=isinstance(self.trainer.strategy, FSDPStrategy))
            key = "train/grad_norm" if name == main else f"train/{name}_grad_norm"
            self.log(key, norms[name], on_step=False, on_epoch=True, batch_size=1)
        finite = all(math.isfinite(float(norm)) for norm in norms.values())
        once = {"on_step": False, "on_epoch": True, "reduce_fx": "sum", "batch_size": 1}
        self.log("train/skipped_steps", float(not finite), **once)  # type: ignore[arg-type]
        self.skipped = None if finite else self._skip_step()
        if main in groups:
            empty = bool(groups[main]) and float(norms[main]) == 0
            self.log("train/empty_steps", float(empty), **once)  # type: ignore[arg-type]
            if empty and self.empty_steps == "skip":
                taken([parameter for kind in groups[main] for parameter in kind])
        self._watched.clear()
        if finite and gradient_clip_val:
            for name, kinds in groups.items():
                clip(kinds, gradient_clip_val, None if gradient_clip_algorithm == "value" else norms[name])

    def guarded(self, loss: Tensor, *others: Tensor, made_of: Mapping[str, Tensor | None]) -> Tensor:
        """The loss of a micro-batch; its gradient is NaN unless it and the others are finite.

        It depends on the numbers `made_of`, by the names of `skipped_steps` or of a term.
        """
        for key, numbers in {**made_of, "loss": loss}.items():
            if numbers is not None:
                self._watched.setdefault(key, []).append(numbers.detach())
        return loss * one_if_finite(loss, *others)

    def _skip_step(self) -> SkippedStep:
        """Drop the gradients, so that the optimizer changes neither weights nor its state; explain why."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}

        def sum_over_ranks(counts: Tensor) -> Tensor:
            return cast(Tensor, self.trainer.strategy.reduce(counts.to(self.device), reduce_op="sum"))

        skipped = explain(self._watched, trained, sum_over_ranks, self.term_sources())
        self.zero_grad(set_to_none=True)
        return skipped


def num_parameters(models: Iterable[nn.Module]) -> int:
    """The number of parameters of some models, shared ones once."""
    return sum({id(p): p.numel() for model in models for p in model.parameters()}.values())
