"""Checks that settings of the rollouts and of the Trainer go together."""

from typing import Protocol, runtime_checkable

from grpo_pl.system.refusal import ConfigError


@runtime_checkable
class TrainerSettings(Protocol):
    """The settings of Lightning's Trainer that `check_trainer` reads."""

    limit_train_batches: int | float
    val_check_interval: int | float
    accumulate_grad_batches: int
    check_val_every_n_epoch: int | None
    gradient_clip_val: int | float | None

    @property
    def precision(self) -> str:
        """The precision, such as `bf16-mixed`."""

    @property
    def max_epochs(self) -> int | None:
        """Iterations after which training ends; -1 for no such end."""

    @property
    def max_steps(self) -> int:
        """Optimizer steps after which training ends; -1 for no such end."""


@runtime_checkable
class RolloutSettings(Protocol):
    """The settings of the DataModule that `check_schedule` reads."""

    group_size: int
    prompts_per_iteration: int
    minibatches: int
    keep_groups: bool

    @property
    def resample(self) -> object:
        """Dynamic sampling; None for none."""


def check_trainer(trainer: TrainerSettings, optimizer_steps: int) -> None:
    """Refuse settings of the Trainer that would cut an iteration in two or spoil its numbers."""
    if trainer.precision in ("bf16-true", "16-true"):
        raise ConfigError(
            f"trainer.precision={trainer.precision} rounds small updates and old log-probabilities away: set "
            "it to bf16-mixed"
        )
    if trainer.precision == "64-true":
        raise ConfigError(
            "trainer.precision=64-true: log-probabilities and their gradients are computed in float32; "
            "set it to 32-true"
        )
    check_trainer_numbers(trainer)
    if trainer.limit_train_batches != 1.0:
        raise ConfigError(
            f"trainer.limit_train_batches={trainer.limit_train_batches} would use half a rollout: an epoch "
            "is one iteration; set trainer.max_epochs instead"
        )
    if trainer.val_check_interval not in (1.0, None):
        raise ConfigError(
            f"trainer.val_check_interval={trainer.val_check_interval} would validate inside an iteration: "
            "set trainer.check_val_every_n_epoch, which counts iterations"
        )
    if trainer.max_steps > 0 and trainer.max_steps % optimizer_steps:
        right = -(-trainer.max_steps // optimizer_steps) * optimizer_steps
        raise ConfigError(
            f"trainer.max_steps={trainer.max_steps} ends inside an iteration of {optimizer_steps} optimizer "
            f"steps: set it to {right}, or trainer.max_epochs to {right // optimizer_steps} iterations"
        )


def check_trainer_numbers(trainer: TrainerSettings) -> None:
    """Refuse numbers of the Trainer that train nothing, or fail during a run."""
    for key in ("max_epochs", "max_steps"):
        if (value := getattr(trainer, key)) is not None and (value == 0 or value < -1):
            raise ConfigError(
                f"trainer.{key}={value} trains nothing: set it to 1 or more, or to -1 for no end"
            )
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        value = getattr(trainer, key)
        if value is None or value < 1:
            raise ConfigError(f"trainer.{key}={'null' if value is None else value}: expected 1 or more")
    if (clip := trainer.gradient_clip_val) is not None and clip < 0:
        raise ConfigError(f"trainer.gradient_clip_val={clip}: expected more than 0, or null for no clipping")


def check_schedule(data: RolloutSettings, micro_batches: int, ranks: int, min_group_size: int) -> None:
    """Refuse a rollout that cannot be divided evenly among ranks, minibatches and micro-batches."""
    if data.group_size < min_group_size:
        raise ConfigError(
            f"data.group_size={data.group_size}: model.advantage compares the responses to one prompt; set "
            f"data.group_size to {min_group_size} or more, or choose another model.advantage"
        )
    if data.group_size == 1 and data.resample is not None:
        raise ConfigError(
            "data.group_size=1: data.resample looks for responses to one prompt that differ, and would throw "
            "every group away: set data.group_size to 2 or more, or data.resample to null"
        )
    if data.prompts_per_iteration % ranks:
        raise ConfigError(
            f"data.prompts_per_iteration={data.prompts_per_iteration} cannot be shared out among {ranks} "
            f"ranks: set it to a multiple of {ranks}"
        )
    prompts = data.prompts_per_iteration // ranks
    units, what = (prompts, "groups") if data.keep_groups else (prompts * data.group_size, "responses")
    if units % data.minibatches:
        raise ConfigError(
            f"data.minibatches={data.minibatches} does not divide the {units} {what} that a rank has: set it "
            "to a divisor"
        )
    if (share := units // data.minibatches) < micro_batches:
        raise ConfigError(
            f"trainer.accumulate_grad_batches={micro_batches} is more than the {share} {what} of a "
            "minibatch: set it to at most that, or data.minibatches lower"
        )
