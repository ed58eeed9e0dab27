"""Which components and settings go together: what cannot be meant is refused before anything is loaded.

Every check raises a ValueError of one sentence, with the key to change.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from grpo_pl.advantages import AdvantageEstimator
from grpo_pl.models import AdapterOff, CausalLM, ModelBuilder
from grpo_pl.references import EMA, ReferenceUpdate
from grpo_pl.regularizers import KLPenalty
from grpo_pl.rewards.base import ProcessReward, RewardFunction, Verifier
from grpo_pl.rewards.transforms import RewardTransform
from grpo_pl.rollout.engine import RolloutEngine
from grpo_pl.types import Prompt


def check_components(
    rewards: dict[str, RewardFunction], kl: KLPenalty | None, reference: ModelBuilder | None
) -> None:
    """Refuse combinations that cannot be meant.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    check_names("model.rewards", rewards)
    if not any(reward.weight for reward in rewards.values()):
        raise ValueError(
            "model.rewards has no reward with a weight other than 0: add one, for instance LastNumber"
        )
    if kl is not None and reference is None:
        raise ValueError(
            "model.kl needs a reference: set model.reference, for instance to CausalLM, or model.kl to null"
        )


def check_engines(engine: RolloutEngine, val_engine: RolloutEngine | None, validates: bool) -> None:
    """Refuse a validation that nothing can answer, and an engine that nothing asks.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    if validates and engine.offline and val_engine is None:
        raise ValueError(
            f"data.engine {type(engine).__name__} has responses to training prompts alone, and data.val is "
            "set: set data.val_engine, for instance to VLLMEngine, or data.val to null"
        )
    if val_engine is not None and not engine.offline:
        raise ValueError(
            "data.val_engine is for a data.engine that does not sample, such as ReplayEngine: set it to null"
        )
    if val_engine is not None and val_engine.offline:
        raise ValueError("data.val_engine does not sample: set it to VLLMEngine, for instance")


def check_names(key: str, named: Mapping[str, object]) -> None:
    """Refuse names that no column of `metrics.csv` can have.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    for name in named:
        if not re.fullmatch(r"\w[\w.-]*", str(name)) or not isinstance(name, str):
            raise ValueError(
                f"{key}: {name!r} cannot be the name of a metric: use letters, digits, _, - and ., in quotes "
                "where they look like a number"
            )


def check_optimizer(
    optimizer: Callable[[Any], Optimizer], lr_scheduler: Callable[[Optimizer], Any] | None
) -> None:
    """Build both for one parameter, so that wrong settings are refused before any model is loaded.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    try:
        built = optimizer([nn.Parameter(torch.zeros(2, 2))])
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.optimizer: {error}") from error
    if lr_scheduler is None:
        return
    try:
        schedule = lr_scheduler(built)
        if isinstance(schedule, ReduceLROnPlateau):
            raise ValueError("ReduceLROnPlateau follows a metric, and there is none after an optimizer step")
        with warnings.catch_warnings(action="ignore"):  # that the optimizer has made no step
            schedule.step()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"model.lr_scheduler: {error}; set it to another one, or to null") from error


def check_critic(
    advantage: AdvantageEstimator, critic: ModelBuilder | None, critic_lr: float | None, critic_warmup: int
) -> None:
    """Refuse a critic that nobody needs, an advantage without the critic it needs, and odd schedules.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    name = type(advantage).__name__
    if advantage.needs_critic and critic is None:
        raise ValueError(
            f"model.advantage {name} needs a critic: set model.critic, for instance to ValueHead"
        )
    if critic is not None and not advantage.needs_critic:
        raise ValueError(
            f"model.critic is set and model.advantage {name} does not use it: set model.critic to null, or "
            "model.advantage to GAE"
        )
    if critic is None and (critic_lr is not None or critic_warmup):
        raise ValueError(
            f"model.critic_lr={critic_lr} and model.critic_warmup={critic_warmup} speak of a critic, and "
            "there is none: set them to null and 0, or model.critic to ValueHead"
        )
    if critic_lr is not None and critic_lr <= 0:
        raise ValueError(f"model.critic_lr={critic_lr}: expected more than 0, or null for the optimizer's")
    if critic_warmup < 0:
        raise ValueError(f"model.critic_warmup={critic_warmup}: expected 0 or more iterations")


def check_reference_update(
    reference_update: ReferenceUpdate | None, kl: KLPenalty | None, reference: ModelBuilder | None
) -> None:
    """Refuse to move a reference that does not exist, that is the policy itself, or that would not move.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    if reference_update is None:
        return
    if kl is None:
        raise ValueError(
            "model.reference_update moves a reference that nothing compares with: set model.kl, for "
            "instance to KLInLoss, or model.reference_update to null"
        )
    if isinstance(reference, AdapterOff):
        raise ValueError(
            "model.reference_update cannot move model.reference AdapterOff, which is the policy itself: set "
            "model.reference to CausalLM, or model.reference_update to null"
        )
    if isinstance(reference_update, EMA) and isinstance(reference, CausalLM) and reference.dtype != "float32":
        raise ValueError(
            f"model.reference.dtype={reference.dtype} rounds the small steps of model.reference_update EMA "
            "away: set it to float32"
        )


def check_advantage_sources(
    advantage: AdvantageEstimator,
    rewards: dict[str, RewardFunction],
    kl: KLPenalty | None,
    reward_transforms: Sequence[RewardTransform],
) -> None:
    """Refuse rewards that the advantage cannot work with, or would not see.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    name = type(advantage).__name__
    if advantage.needs_steps and not any(
        isinstance(reward, ProcessReward) and reward.weight for reward in rewards.values()
    ):
        raise ValueError(
            f"model.advantage {name} needs rewards of steps: add a process reward with a weight other than 0 "
            "to model.rewards, or set model.advantage to GroupRelative"
        )
    if advantage.reads_named_rewards and reward_transforms:
        raise ValueError(
            f"model.reward_transforms change the sum of the rewards, and model.advantage {name} reads each "
            "reward on its own: set model.reward_transforms to null"
        )
    if advantage.reads_named_rewards and kl is not None and type(kl).cost is not KLPenalty.cost:
        raise ValueError(
            f"model.kl {type(kl).__name__} changes the sum of the rewards, and model.advantage {name} reads "
            "each reward on its own: set model.kl to KLInLoss"
        )


def check_answers(
    kind: str, functions: Mapping[str, RewardFunction | Verifier], key: str, prompts: Sequence[Prompt]
) -> None:
    """Refuse prompts of which a function can check no answer; up to 256 of them are looked at.

    Raises:
        ValueError: In one sentence, with the keys of both.
    """
    some = prompts[:: max(len(prompts) // 256, 1)]
    for name, function in functions.items():
        if not any(function.can_score(prompt) for prompt in some):
            raise ValueError(
                f"{kind}.{name}: {type(function).__name__} can read none of the answers of {key} (for "
                f"instance {some[0].answer!r}): check the answer column of {key}, or choose another function"
            )


@runtime_checkable
class TrainerSettings(Protocol):
    """What `check_trainer` reads of Lightning's Trainer."""

    limit_train_batches: int | float
    val_check_interval: int | float
    accumulate_grad_batches: int
    check_val_every_n_epoch: int | None
    gradient_clip_val: int | float | None

    @property
    def precision(self) -> str:
        """How numbers are held, as in `bf16-mixed`."""
        ...

    @property
    def max_epochs(self) -> int | None:
        """Iterations after which training ends; -1 for no such end."""
        ...

    @property
    def max_steps(self) -> int:
        """Optimizer steps after which training ends; -1 for no such end."""
        ...


@runtime_checkable
class RolloutSettings(Protocol):
    """What `check_schedule` reads of the DataModule."""

    group_size: int
    prompts_per_iteration: int
    minibatches: int
    keep_groups: bool


def check_trainer(trainer: TrainerSettings, optimizer_steps: int) -> None:
    """Refuse settings of the Trainer that would cut an iteration in two or spoil its numbers.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    if trainer.precision in ("bf16-true", "16-true"):
        raise ValueError(
            f"trainer.precision={trainer.precision} rounds small updates and old log-probabilities away: set "
            "it to bf16-mixed"
        )
    if trainer.precision == "64-true":
        raise ValueError(
            "trainer.precision=64-true: log-probabilities and their gradients are computed in float32; "
            "set it to 32-true"
        )
    check_trainer_numbers(trainer)
    if trainer.limit_train_batches != 1.0:
        raise ValueError(
            f"trainer.limit_train_batches={trainer.limit_train_batches} would use half a rollout: an epoch "
            "is one iteration; set trainer.max_epochs instead"
        )
    if trainer.val_check_interval not in (1.0, None):
        raise ValueError(
            f"trainer.val_check_interval={trainer.val_check_interval} would validate inside an iteration: "
            "set trainer.check_val_every_n_epoch, which counts iterations"
        )
    if trainer.max_steps > 0 and trainer.max_steps % optimizer_steps:
        right = -(-trainer.max_steps // optimizer_steps) * optimizer_steps
        raise ValueError(
            f"trainer.max_steps={trainer.max_steps} ends inside an iteration of {optimizer_steps} optimizer "
            f"steps: set it to {right}, or trainer.max_epochs to {right // optimizer_steps} iterations"
        )


def check_trainer_numbers(trainer: TrainerSettings) -> None:
    """Refuse numbers of the Trainer that train nothing, or fail in the middle of a run.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    for key in ("max_epochs", "max_steps"):
        if (value := getattr(trainer, key)) is not None and (value == 0 or value < -1):
            raise ValueError(
                f"trainer.{key}={value} trains nothing: set it to 1 or more, or to -1 for no end"
            )
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        value = getattr(trainer, key)
        if value is None or value < 1:
            raise ValueError(f"trainer.{key}={'null' if value is None else value}: expected 1 or more")
    if (clip := trainer.gradient_clip_val) is not None and clip < 0:
        raise ValueError(f"trainer.gradient_clip_val={clip}: expected more than 0, or null for no clipping")


def check_schedule(data: RolloutSettings, micro_batches: int, ranks: int, min_group_size: int) -> None:
    """Refuse a rollout that cannot be shared out evenly among ranks, minibatches and micro-batches.

    Raises:
        ValueError: In one sentence, with the key to change.
    """
    if data.group_size < min_group_size:
        raise ValueError(
            f"data.group_size={data.group_size}: model.advantage compares the responses to one prompt; set "
            f"data.group_size to {min_group_size} or more, or choose another model.advantage"
        )
    if data.prompts_per_iteration % ranks:
        raise ValueError(
            f"data.prompts_per_iteration={data.prompts_per_iteration} cannot be shared out among {ranks} "
            f"ranks: set it to a multiple of {ranks}"
        )
    prompts = data.prompts_per_iteration // ranks
    units, what = (prompts, "groups") if data.keep_groups else (prompts * data.group_size, "responses")
    if units % data.minibatches:
        raise ValueError(
            f"data.minibatches={data.minibatches} does not divide the {units} {what} that a rank has: set it "
            "to a divisor"
        )
    if (share := units // data.minibatches) < micro_batches:
        raise ValueError(
            f"trainer.accumulate_grad_batches={micro_batches} is more than the {share} {what} of a "
            "minibatch: set it to at most that, or data.minibatches lower"
        )
