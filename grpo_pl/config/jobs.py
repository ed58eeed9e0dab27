"""The jobs of a config: training a policy, or a reward model."""

from typing import NamedTuple

import lightning.pytorch as pl

from grpo_pl.callbacks import alarms, budget, curves, gradient_terms, samples, verdicts
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.module import PolicyOptimization
from grpo_pl.reward_modeling.data import RewardDataModule
from grpo_pl.reward_modeling.module import RewardModeling


class Job(NamedTuple):
    """The modules that a config configures, and the callbacks of the job."""

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
            "verdicts": verdicts.Verdicts,
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
