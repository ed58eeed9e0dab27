"""The command line: `python -m grpo_pl {fit,validate} --config ...`."""

import difflib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn, get_args

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

from grpo_pl import __version__
from grpo_pl.advantages import AdvantageEstimator
from grpo_pl.callbacks import curves, memory, progress, records, samples
from grpo_pl.callbacks.checkpoint_io import AtomicCheckpointIO
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.losses import Aggregation, PolicyLoss
from grpo_pl.masks import TokenMask
from grpo_pl.models import ModelBuilder
from grpo_pl.module import PolicyOptimization
from grpo_pl.prompts import procedural, sources
from grpo_pl.prompts.sources import PromptSource
from grpo_pl.quiet import tame_logs
from grpo_pl.references import ReferenceUpdate
from grpo_pl.regularizers import KLPenalty
from grpo_pl.rewards import judge, math_answer, models, rules, steps
from grpo_pl.rewards.base import RewardError, RewardFunction, Verifier
from grpo_pl.rewards.transforms import RewardTransform
from grpo_pl.rollout import in_process, vllm
from grpo_pl.rollout.engine import RolloutEngine

COMPONENTS = (
    RewardFunction,
    RewardTransform,
    TokenMask,
    ReferenceUpdate,
    AdvantageEstimator,
    PolicyLoss,
    Aggregation,
    KLPenalty,
    ModelBuilder,
    RolloutEngine,
    PromptSource,
)
"""The abstract classes whose implementations a config names by their short names."""

IMPLEMENTATIONS = (judge, math_answer, models, rules, steps, in_process, vllm, procedural, sources)
"""Imported so that their classes answer to their short names."""

TAKE_PRETRAINED = ("model.policy", "model.reference", "model.critic", "data.engine")
"""The components that load the model of `--pretrained` unless they name one of their own."""


class Parser(LightningArgumentParser):
    """Answers a mistake with one sentence and the nearest right name, not with pages of usage."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a component inside: the outer one will name the whole key
            super().error(message, ex)
        fail(explain(message, known_options(self)))


def known_options(parser: ArgumentParser) -> dict[str, Any]:
    """The options of a parser and of its subcommands: dotted name -> the type it takes."""
    options: dict[str, Any] = {}
    for action in parser._actions:
        for subcommand in action.choices.values() if isinstance(action.choices, dict) else ():
            options |= known_options(subcommand)
        names = [name[2:] for name in action.option_strings if name.startswith("--")]
        options |= dict.fromkeys(names, getattr(action, "_typehint", None))
    return options


def explain(message: str, options: dict[str, Any]) -> str:
    """The parser's message as one sentence: the key, what was expected, what was got, the nearest name."""
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if unknown := re.search(r"unrecognized arguments: -*([^\s=]+)|does not accept option '(.+?)'", message):
        return no_such_option(unknown[1] or unknown[2], options)
    if unknown := re.search(r"Option '(.+?)' is not accepted", message):
        cls = locate(re.findall(r"class_path[ =]'([\w.]+)'", message)[-1])
        return no_such_option(f"{key}.{unknown[1]}", [f"{key}.{name}" for name in parameters(cls)])
    if missing := re.search(r"arguments are required: (.+)", message):
        names = [".".join(filter(None, (key, name.removeprefix("fit.")))) for name in missing[1].split(", ")]
        return f"{', '.join(names)}: no value is given; set it in a --config file or on the command line"
    if file := re.search(r"File does not exist: '(.+)'", message):
        return (
            f"{key}: there is no file {file[1]}{nearest(file[1], map(str, Path(file[1]).parent.glob('*')))}"
        )
    got = re.search(r"(?:Got value|Given value): (.*?)(?=\. Got value|$)", message, re.MULTILINE)
    components = sorted(implementations(options.get(key)))
    name = re.search(r"Expected a dot import path string: (.+)", message)
    if name and components:
        return f"{key}: expected one of {', '.join(components)}, got {name[1]}{nearest(name[1], components)}"
    types = re.findall(
        r"Expected a (?:<class '(.+?)'>|typing\.Literal\[(.+?)\])", message[: got and got.start()]
    )
    if got and types:
        expected = " or ".join(dict.fromkeys(plain or f"one of {choices}" for plain, choices in types))
        near = nearest(got[1], re.findall(r"'(.+?)'", expected))
        return f"{key}: expected {expected.replace('NoneType', 'null')}, got {got[1]}{near}"
    if name:
        return f"{key}: expected an import path such as torch.optim.AdamW, got {name[1]}"
    noise = "Expected a path|Does not validate|Subtypes:|Errors:|Given value|Problem with given class"
    text = re.sub(r'Parser key ".+?":|Type \S.* expects a function or a callable class:', "\n", message)
    lines = [line.strip(" -") for line in text.splitlines()]
    reason = " ".join(line for line in lines if line and not re.match(noise, line))
    return f"{key}: {reason}" if key else reason


def no_such_option(wrong: str, options: Iterable[str]) -> str:
    """Names the nearest option in the same group, else anywhere, else all of the group."""
    group, _, leaf = wrong.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in options if name.rpartition(".")[0] == group}
    if near := difflib.get_close_matches(leaf, beside, n=1):
        return f"there is no option {wrong}. Did you mean {beside[near[0]]}?"
    has = f"; {group} has {', '.join(sorted(beside))}" if group and beside else nearest(wrong, options)
    return f"there is no option {wrong}{has}"


def nearest(wrong: str, names: Iterable[str]) -> str:
    """A question, if there is a name much like the wrong one."""
    near = difflib.get_close_matches(wrong, list(names), n=1, cutoff=0.7)
    return f". Did you mean {near[0]}?" if near else ""


def parameters(cls: Any) -> list[str]:
    """What the constructor of a class takes, with what it hands on to others."""
    return list(ArgumentParser().add_class_arguments(cls, fail_untyped=False))


def implementations(typehint: Any) -> set[str]:
    """The short names of the components that a parameter of this type takes."""
    found = [typehint] if typehint in COMPONENTS or typehint is Verifier else []
    for cls in found:
        found += cls.__subclasses__()
    names = {cls.__name__ for cls in found if not inspect.isabstract(cls)}
    return names.union(*(implementations(part) for part in get_args(typehint)))


def fail(sentence: str) -> NoReturn:
    """Say what is wrong and end with exit code 2."""
    sys.stdout.flush()
    print(f"grpo_pl: error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


class RunFolder(SaveConfigCallback):
    """Prepares the run's folder when all is checked: an earlier run moves aside, `config.yaml` comes in."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        if self.config.get("ckpt_path") is None:
            records.move_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(
            self.config, folder / "config.yaml", skip_unset=False, overwrite=True, multifile=False
        )


class CLI(LightningCLI):
    """LightningCLI whose `--pretrained` reaches every model; its run folder is `trainer.default_root_dir`."""

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate")}

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs, allow_abbrev=False, dump_header=[f"grpo_pl=={__version__}"])
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file; later ones win.")
        return parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--pretrained",
            type=str,
            default="",
            help="Model folder or hub name, for every model, engine and tokenizer that names none itself.",
        )
        parser.add_lightning_class_args(records.MetricsTable, "metrics")
        parser.add_lightning_class_args(samples.Samples, "samples")
        parser.add_lightning_class_args(progress.Progress, "progress")
        parser.add_lightning_class_args(curves.Curves, "curves")
        parser.add_lightning_class_args(memory.ReleaseMemory, "release_memory")
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
        """Save checkpoints without a copy in memory, wherever the strategy writes single files."""
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    tame_logs()
    try:
        CLI(
            PolicyOptimization,
            RolloutDataModule,
            args=args,
            save_config_callback=RunFolder,
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
    except FileNotFoundError as error:
        if "Checkpoint" in str(error):
            fail(f"ckpt_path: {error}")
        raise
    except ValueError as error:
        for cause in (error, error.__cause__):  # jsonargparse wraps what a component says that may be null
            if isinstance(cause, ValueError) and raised_by_grpo_pl(cause):
                refuse(cause)
        raise


def raised_by_grpo_pl(error: BaseException) -> bool:
    """Whether our own code raised it: then it is about the user's input, and a traceback adds nothing."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return str(last[0].f_globals.get("__name__", "")).startswith("grpo_pl.")


def refuse(error: Exception) -> NoReturn:
    """End with the error's sentence; `GRPO_PL_TRACEBACK=1` shows where it came from."""
    if os.environ.get("GRPO_PL_TRACEBACK"):
        raise error
    fail(str(error))
