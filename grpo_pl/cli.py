"""The command line: `python -m grpo_pl {fit,validate} --config ...`."""

import difflib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from grpo_pl import __version__
from grpo_pl.advantages import AdvantageEstimator
from grpo_pl.callbacks import curves, progress, records, samples
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.module import PolicyOptimization
from grpo_pl.losses import Aggregation, PolicyLoss
from grpo_pl.models import ModelBuilder
from grpo_pl.prompts import procedural, sources
from grpo_pl.prompts.sources import PromptSource
from grpo_pl.quiet import tame_logs
from grpo_pl.regularizers import KLPenalty
from grpo_pl.rewards import math_answer, rules
from grpo_pl.rewards.base import RewardError, RewardFunction
from grpo_pl.rollout import in_process, vllm
from grpo_pl.rollout.engine import RolloutEngine

COMPONENTS = (
    RewardFunction,
    AdvantageEstimator,
    PolicyLoss,
    Aggregation,
    KLPenalty,
    ModelBuilder,
    RolloutEngine,
    PromptSource,
)
"""The abstract classes whose implementations a config names by their short names."""

IMPLEMENTATIONS = (math_answer, rules, in_process, vllm, procedural, sources)
"""Imported so that their classes answer to their short names."""

TAKE_PRETRAINED = ("model.policy", "model.reference", "model.critic", "data.engine")
"""The components that load the model of `--pretrained` unless they name one of their own."""


class Parser(LightningArgumentParser):
    """Answers a mistake with one sentence and the nearest right name, not with pages of usage."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        names = {action.dest for action in self._actions} | {o.lstrip("-") for a in self._actions for o in a.option_strings}
        fail(explain(message, names))


def explain(message: str, names: set[str]) -> str:
    """The parser's message in one line, with the nearest of the known names to those it quotes."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    sentence = re.sub(r"\s+", " ", ": ".join(line.rstrip(":.") for line in lines[:4]))
    names = names | class_names()
    for wrong in re.findall(r"[\"'`]?-{0,2}([A-Za-z_][\w.]+)[\"'`]?", sentence):
        near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.8)
        if near and wrong not in names and len(wrong) > 3:
            return f"{sentence}. Did you mean {near[0]}?"
    return sentence


def class_names() -> set[str]:
    """The short names of all components."""
    found: list[type] = list(COMPONENTS)
    for cls in found:
        found += cls.__subclasses__()
    return {cls.__name__ for cls in found}


def fail(sentence: str) -> NoReturn:
    """Say what is wrong and end with exit code 2."""
    sys.stdout.flush()
    print(f"grpo_pl: error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


class SaveConfig(SaveConfigCallback):
    """Keeps `config.yaml` in the run's folder, whatever the logger does with its own."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=False
            )


class CLI(LightningCLI):
    """LightningCLI whose `--pretrained` reaches every model, and whose run folder is `trainer.default_root_dir`."""

    parser_class = Parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--pretrained", type=str, default="",
            help="Model folder or hub name of every model, the engine and the tokenizer that name none of their own.",
        )
        parser.add_lightning_class_args(records.MetricsTable, "metrics")
        parser.add_lightning_class_args(samples.Samples, "samples")
        parser.add_lightning_class_args(progress.Progress, "progress")
        parser.add_lightning_class_args(curves.Curves, "curves")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "iteration-{iteration:04.0f}",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.save_last": "link",
                "checkpoint.save_on_train_epoch_end": True,
            }
        )

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        for component in TAKE_PRETRAINED:
            chosen = config.get(component)
            if isinstance(chosen, Namespace) and chosen.get("init_args.pretrained") == "":
                chosen["init_args.pretrained"] = config.pretrained
        if not config.data.pretrained:
            config.data.pretrained = config.pretrained
        if config.get("checkpoint") and config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(Path(config.trainer.default_root_dir) / "checkpoints")

    @override
    def _parse_ckpt_path(self) -> None:
        """A checkpoint restores a run's state; what its settings are, the config alone says."""

    def before_fit(self) -> None:
        """Keep an earlier run: one that is not continued is moved aside."""
        if self.config.fit.ckpt_path is None and self.trainer.is_global_zero:
            records.move_aside(Path(self.trainer.default_root_dir))


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    tame_logs()
    try:
        CLI(
            PolicyOptimization,
            RolloutDataModule,
            args=args,
            save_config_callback=SaveConfig,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs={"prog": "grpo_pl", "version": __version__},
            trainer_defaults={
                "default_root_dir": "runs/default",
                "logger": False,
                "num_sanity_val_steps": 0,
                "max_epochs": 100,
                "enable_model_summary": False,
            },
        )
    except (RewardError, MisconfigurationException) as error:
        refuse(error)
    except ValueError as error:
        if raised_by_grpo_pl(error):
            refuse(error)
        raise


def raised_by_grpo_pl(error: BaseException) -> bool:
    """Whether our own code raised it: then it is about the user's input, and the traceback says nothing more."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return str(last[0].f_globals.get("__name__", "")).startswith("grpo_pl.")


def refuse(error: Exception) -> NoReturn:
    """End with the error's sentence; `GRPO_PL_TRACEBACK=1` shows where it came from."""
    if os.environ.get("GRPO_PL_TRACEBACK"):
        raise error
    fail(str(error))


