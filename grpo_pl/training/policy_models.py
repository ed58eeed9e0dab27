"""The models of policy optimization: built, counted and handed out."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import LRSchedulerTypeUnion
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from grpo_pl.models import LanguageModel, WithoutAdapter
from grpo_pl.models.builder import Place
from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.reference_update import ReferenceUpdate
from grpo_pl.rewards.base import RewardFunction
from grpo_pl.system.refusal import ConfigError
from grpo_pl.training.optimization import OptimizedModule
from grpo_pl.training.strategies import place


class PolicyModels(OptimizedModule):
    """Holds policy, reference, critic and the models of rewards, by the builders of `builders`.

    While the critic warms up, the policy gets no gradient and its clocks stand still: its schedule does not
    move, and the critic learns at its full rate.
    """

    rewards: dict[str, RewardFunction]
    reference_update: ReferenceUpdate | None
    critic_warmup: int = 0
    """First iterations, in which only the critic's own parameters learn."""

    def __init__(self) -> None:
        super().__init__()
        self.policy: LanguageModel | None = None
        self.critic: nn.Module | None = None
        self.reference: LanguageModel | WithoutAdapter | None

    @override
    def configure_model(self) -> None:
        if self.policy is None:
            self.build(partial(place, self.trainer.strategy))

    def build(self, place: Place) -> None:
        """Build every model where `place` puts it; policy and reference must be language models."""

        def language_model(key: str, policy: nn.Module | None = None) -> LanguageModel | WithoutAdapter:
            built = self.builders[key].build(policy)  # type: ignore[union-attr]
            if not isinstance(built, LanguageModel | WithoutAdapter):
                raise ConfigError(f"model.{key} builds no language model: set it to CausalLM")
            return built

        self.policy = cast(LanguageModel, place(lambda: language_model("policy")))
        policy = getattr(self.policy, "module", self.policy)  # FSDP1 wraps it
        if (critic := self.builders["critic"]) is not None:
            self.critic = place(lambda: critic.build(policy))
        for reward in self.rewards.values():
            reward.build(place)
        reference = None
        if self.builders["reference"] is not None:
            reference = place(lambda: language_model("reference", policy).requires_grad_(False).eval())
        if self.reference_update is None:
            object.__setattr__(self, "reference", reference)  # unregistered: in no checkpoint
        else:
            self.reference = cast(LanguageModel, reference)

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {"policy": [], "critic": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["critic" if name.startswith("critic.") else "policy"].append(parameter)
        return groups

    @property
    def warming_up(self) -> bool:
        """Whether the critic alone learns in this iteration."""
        return self.current_epoch < self.critic_warmup

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Drop the policy's gradients while the critic warms up, so that the optimizer does not see them."""
        if self.policy is not None and self.warming_up:
            self.policy.zero_grad(set_to_none=True)

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step; while the critic warms up, at its rate of before any schedule."""
        of_critic = {id(p) for p in self.parameter_groups()["critic"]} if self.warming_up else set()
        groups = [g for g in optimizer.param_groups if any(id(p) in of_critic for p in g["params"])]
        scheduled = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group.get("initial_lr", group["lr"])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for group, rate in zip(groups, scheduled, strict=True):
            group["lr"] = rate

    @override
    def lr_scheduler_step(self, scheduler: LRSchedulerTypeUnion, metric: Any) -> None:
        """Step the schedule, unless the critic warms up: it is the policy's, and starts with the policy."""
        if not self.warming_up:
            super().lr_scheduler_step(scheduler, metric)

    @override
    def held_models(self) -> dict[str, nn.Module]:
        rewards = {f"rewards.{name}": reward.held_model for name, reward in self.rewards.items()}
        models = {"policy": self.policy, "critic": self.critic, "reference": self.reference}
        return {name: model for name, model in (models | rewards).items() if model is not None}

    @override
    def frozen_weights(self) -> dict[str, Tensor]:
        """The pretrained weights under the adapters of a LoRA policy."""
        assert self.policy is not None, "configure_model comes first"
        named = self.policy.named_parameters("policy", remove_duplicate=False)
        return {name: parameter.detach() for name, parameter in named if not parameter.requires_grad}

    def policy_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters, whole, one at a time, under their Hugging Face names.

        Sharded ones are cast to `dtype` before they are gathered; None leaves them as they are.
        """
        assert self.policy is not None, "configure_model comes first"
        for name, tensor in full_weights(self.policy, dtype):
            yield name.removeprefix("language_model."), tensor
