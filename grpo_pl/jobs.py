"""What a config can ask for: a policy, or a reward model."""

import argparse
from typing import NamedTuple

import lightning.pytorch as pl

from grpo_pl.callbacks import alarms, budget, curves, gradient_terms, samples
from grpo_pl.config_files import other_version, read_job_config
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.module import PolicyOptimization
from grpo_pl.refusal import fail, nearest
from grpo_pl.reward_modeling.data import RewardDataModule
from grpo_pl.reward_modeling.module import RewardModeling


class Job(NamedTuple):
    """Which modules a config configures, and what one looks at."""

    model: type[pl.LightningModule]
    data: type[pl.LightningDataModule]
    callbacks: dict[str, type[pl.Callback]]
    """Config key -> callback, beside those of every job."""
    take_pretrained: tuple[str, ...]
    """The keys that mean the model of `--pretrained` where they are empty."""


JOBS = {
    "policy": Job(
        PolicyOptimization,
        RolloutDataModule,
        {
            "budget": budget.Budget,
            "alarms": alarms.Alarms,
            "samples": samples.Samples,
            "gradient_terms": gradient_terms.GradientTerms,
            "curves": curves.Curves,
        },
        (
            "model.policy.init_args.pretrained",
            "model.reference.init_args.pretrained",
            "model.critic.init_args.pretrained",
            "data.engine.init_args.pretrained",
            "data.engine.init_args.engine.init_args.pretrained",
            "data.val_engine.init_args.pretrained",
            "data.pretrained",
        ),
    ),
    "reward_model": Job(
        RewardModeling,
        RewardDataModule,
        {"reliability": curves.Reliability},
        ("model.pretrained", "data.pretrained"),
    ),
}
"""The value of the config key `job` -> what is trained, on the same Trainer and with the same run folder."""


def read_ahead(args: list[str]) -> tuple[str, str]:
    """The job that the command line and its config files name, and which of these are of another version.

    The job decides what else they may say.

    Raises:
        ValueError: If a config file is none, in one sentence.
    """
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("-c", "--config", action="append", default=[])
    reader.add_argument("--job")
    try:
        said, _ = reader.parse_known_args(args)
        read = [read_job_config(path) for path in said.config]
    except (argparse.ArgumentError, FileNotFoundError):
        return "policy", ""  # whatever is wrong there, the parser itself will name it
    job = said.job or ([config["job"] for config in read if "job" in config] or ["policy"])[-1]
    if not isinstance(job, str) or job not in JOBS:
        fail(f"job: expected one of {', '.join(JOBS)}, got {job}{nearest(str(job), JOBS)}")
    return job, "".join(map(other_version, said.config))
