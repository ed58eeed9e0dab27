"""Starts the engine of a config for commands that look at its samples and train nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl

from grpo_pl.config.cli import CLI
from grpo_pl.datamodule import RolloutDataModule, connect
from grpo_pl.module import PolicyOptimization
from grpo_pl.rollout.engine import RolloutEngine

ONE_PROCESS = (
    *("--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"),
    *("--trainer.logger", "false", "--trainer.callbacks", "null"),
    *("--data.val", "null", "--data.val_engine", "null", "--data.store_rollouts", "false"),
)
"""Options of `fit` for one process, which has the prompts of all ranks, and nothing but rollouts."""


def of_policy(cli: CLI) -> tuple[pl.Trainer, PolicyOptimization, RolloutDataModule]:
    """Connect and return the components of a config for the job `policy`."""
    module, data = cli.model, cli.datamodule
    assert isinstance(module, PolicyOptimization)
    assert isinstance(data, RolloutDataModule)
    connect(cli.trainer, module, data)
    return cli.trainer, module, data


@contextmanager
def started(
    trainer: pl.Trainer, data: RolloutDataModule, limits: tuple[int, int] | None = None
) -> Iterator[RolloutEngine]:
    """The engine with the pretrained weights, as `fit` starts it; always shut down afterwards.

    Args:
        trainer: The trainer that `data` is connected with (`of_policy`).
        data: Holds the engine.
        limits: Sequences at once and tokens of the longest response, where these are not those of `fit`.
    """
    try:
        if limits is None:
            data.start("fit")
        else:
            data.engine.start(
                max_sequence_tokens=data.max_prompt_tokens + limits[1],
                max_sequences=limits[0],
                device=trainer.strategy.root_device,
            )
        yield data.engine
    finally:
        data.engine.shutdown()
