"""`python -m grpo_pl plan`."""

import json
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from rich.console import Console

from grpo_pl.commands.plan.report import as_json, show
from grpo_pl.commands.plan.requirements import read_run
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.module import PolicyOptimization
from grpo_pl.system.precision import PRECISIONS, chosen_dtype


class PlanningTrainer(pl.Trainer):
    """Lightning's Trainer, which can also say what `fit` would need.

    Args:
        precision: Lightning's, or `auto`: bf16-mixed where the device computes bfloat16 well, 32-true where
            it does not (16-mixed where a GPU has nothing else).
    """

    def __init__(self, *, precision: Literal["auto"] | _PRECISION_INPUT | None = None, **kwargs: Any) -> None:
        super().__init__(
            precision=PRECISIONS[chosen_dtype("auto")] if precision == "auto" else precision, **kwargs
        )

    def plan(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule,
        out: str | None = None,
        ckpt_path: str | None = None,  # noqa: ARG002 - what a config for `fit` may say
        weights_only: bool | None = None,  # noqa: ARG002
    ) -> None:
        """Say what a run will need of memory and passes, and what is likely not meant; load and run nothing.

        Args:
            model: What `fit` would train.
            datamodule: What it would train on.
            out: A JSON file to write the plan to, too.
            ckpt_path: Not read.
            weights_only: Not read.

        Raises:
            ValueError: If `fit` would refuse the configuration too, or if the job is another one.
        """
        if not isinstance(model, PolicyOptimization) or not isinstance(datamodule, RolloutDataModule):
            raise ValueError(
                "job: plan knows the job policy alone, got reward_model: leave job out, or run fit"
            )
        run = read_run(self, model, datamodule)
        show(run, Console())
        if out is not None:
            Path(out).write_text(json.dumps(as_json(run), indent=2) + "\n", encoding="utf-8")
