"""The models of policy optimization: built, counted and handed out."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import LRSchedulerTypeUnion
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from grpo_pl.advantages import AdvantageEstimator
from grpo_pl.losses.kl import KLPenalty
from grpo_pl.models import LanguageModel, WithoutAdapter
from grpo_pl.models.builder import Place
from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.language_model import TokenLogprobs
from grpo_pl.models.loading import SIZES, pretrained_models
from grpo_pl.models.reference_update import ReferenceUpdate
from grpo_pl.models.teacher import Teacher
from grpo_pl.rewards.base import RewardFunction
from grpo_pl.system.refusal import ConfigError
from grpo_pl.training.optimization import OptimizedModule
from grpo_pl.training.strategies import place
from grpo_pl.types import Experience, Sequences, TokenScores


class PolicyModels(OptimizedModule):
    """Holds policy, reference, critic and the models of rewards, by the builders of `builders`.

    While the critic warms up, the policy gets no gradient and its clocks stand still: its schedule does not
    move, and the critic learns at its full rate.
    """

    rewards: dict[str, RewardFunction]
    advantage: AdvantageEstimator
    kl: KLPenalty | None
    reference_update: ReferenceUpdate | None
    critic_warmup: int = 0
    """First iterations, in which only the critic's own parameters learn."""

    def __init__(self) -> None:
        super().__init__()
        self.policy: LanguageModel | None = None
        self.critic: nn.Module | None = None
        self.reference: LanguageModel | WithoutAdapter | None

    @property
    def head_dtypes(self) -> dict[str, str | None]:
        """The types in which the LM heads of policy and reference multiply, by config key."""
        built = {f"model.{key}": self.builders[key] for key in ("policy", "reference")}
        return {key: one.head_dtype for key, one in built.items() if one is not None and one.has_own_weights}

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
            self.check_reference(reference)
        if self.reference_update is None:
            object.__setattr__(self, "reference", reference)  # unregistered: in no checkpoint
        else:
            self.reference = cast(LanguageModel, reference)

    def check_reference(self, reference: nn.Module) -> None:
        """Refuse a reference that cannot say what the KL asks it for, or cannot follow the policy."""
        whole_vocabulary = self.kl is not None and self.kl.divergence is not None
        if whole_vocabulary and isinstance(reference, FullyShardedDataParallel):
            raise ConfigError(
                "model.kl TeacherKL over the whole vocabulary cannot read a reference that FSDPStrategy "
                "divides: set trainer.strategy to fsdp2, or model.kl.top_k, for instance to 64"
            )
        models = [model for held in (self.policy, reference) if held for model in pretrained_models(held)]
        if self.reference_update is not None and len({sizes(model) for model in models}) > 1:
            raise ConfigError(
                "model.reference_update cannot move a model.reference of other shapes than the policy's: set "
                "it to null, or model.reference.pretrained to a model of the policy's size"
            )

    @property
    def reads_reference(self) -> bool:
        """Whether the reference scores a rollout before the update."""
        return self.advantage.needs_reference or (self.kl is not None and self.kl.needs_ref_logprobs)

    def reference_scores(self, batch: Sequences) -> TokenScores:
        """The reference's scores of a micro-batch, and its most probable tokens where the KL asks."""
        assert self.reference is not None, "check_components refuses a KL without a reference"
        chosen = batch.token_ids, batch.loss_mask, batch.temperature
        among: dict[str, Any] = {"candidates": batch.candidates, "renormalized": batch.renormalized}
        if self.kl is not None and self.kl.top_k is not None:
            among = {"top_k": self.kl.top_k}
        return scored_tokens(self.reference(*chosen, **among))

    def teacher_of(self, batch: Sequences) -> Teacher | None:
        """What the reference says of a micro-batch in the update, for a KL over the whole vocabulary."""
        if self.kl is None or self.kl.divergence is None or not isinstance(batch, Experience):
            return None
        assert self.reference is not None, "check_components refuses a KL without a reference"
        with torch.no_grad():
            said = self.reference(batch.token_ids, batch.loss_mask, batch.temperature, teaches=True)
        return Teacher(said.hidden, said.head, self.kl.divergence)

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
    def learns(self, group: str) -> bool:
        return group == "critic" or not self.warming_up

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


def sizes(model: Any) -> tuple[int | None, ...]:
    """What a configuration says about the shapes of a model's weights."""
    config = model.config.get_text_config()
    return tuple(getattr(config, name, None) for name in (*SIZES, "intermediate_size", "num_key_value_heads"))


def scored_tokens(scores: TokenLogprobs, values: Tensor | None = None) -> TokenScores:
    """A language model's scores, and a critic's, as the learner keeps them."""
    return TokenScores(
        logprobs=scores.logprobs,
        entropy=scores.entropy,
        values=values,
        candidates=scores.candidates,
        candidate_ids=scores.candidate_ids,
        divergence=scores.divergence,
        reverse_kl=scores.reverse_kl,
    )
