"""Reads the command line and the config files that it names."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from grpo_pl import __version__
from grpo_pl.callbacks import guard, metrics_table, progress, release_memory
from grpo_pl.callbacks.loggers import label_loggers
from grpo_pl.config.allowed import check_values
from grpo_pl.config.exits import own_cause, refuse
from grpo_pl.config.files import read_ahead
from grpo_pl.config.jobs import JOBS
from grpo_pl.config.open_types import Trainer, left_open, settle
from grpo_pl.config.option_names import Names, keep
from grpo_pl.config.parser import Parser
from grpo_pl.config.places import BugError
from grpo_pl.config.sentences import failed_imports_answered, groups, known_options
from grpo_pl.models.heads import HeadDType
from grpo_pl.runs import preemption
from grpo_pl.runs.checkpoints import BY_STEP, Checkpoints
from grpo_pl.runs.folder import RunFolder
from grpo_pl.system.folders import check_folder
from grpo_pl.system.output import tame_logs
from grpo_pl.system.refusal import ConfigError, fail


class CLI(LightningCLI):
    """Reads and checks a command line of `fit` or `validate` with its config files, and runs nothing.

    `--pretrained` reaches every model; the run's folder is `trainer.default_root_dir`.

    Args:
        options: The words after the command.
        command: `fit` or `validate`.
    """

    @failed_imports_answered()
    def __init__(self, options: list[str], command: str = "fit") -> None:
        tame_logs()  # again: importing Lightning sets other levels
        self.command = command
        self.job, self.written_by = read_ahead(options)
        super().__init__(
            JOBS[self.job].model,
            JOBS[self.job].data,
            trainer_class=Trainer,
            args=options,
            run=False,  # Lightning's subcommands read everything twice
            save_config_callback=RunFolder,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs={"prog": f"grpo_pl {command}"},
            trainer_defaults={
                "default_root_dir": "runs/default",
                "logger": False,
                "num_sanity_val_steps": 0,
                "max_epochs": 100,
                "enable_model_summary": False,
            },
        )

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs, allow_abbrev=False, dump_header=[f"grpo_pl=={__version__}"])
        parser.written_by = self.written_by
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file; later ones win.")
        return parser

    @override
    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        keep(self.job, self.command, Names(list(known_options(self.parser)), groups(self.parser)))

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--job", type=Literal["policy", "reward_model"], default=self.job, help="What is trained."
        )
        text = "Model folder or hub name, for every model, engine and tokenizer that names none itself."
        parser.add_argument("--pretrained", type=str, default="", help=text)
        if self.job == "policy":
            text = "The type in which the LM heads of policy, reference and engine multiply; "
            text += "null for that of their other layers."
            parser.add_argument("--head_dtype", type=HeadDType, default=None, help=text)
        text = "auto: an unfinished run in trainer.default_root_dir goes on if its settings are the same; "
        text += "never: it is moved aside."
        parser.add_argument("--resume", type=Literal["auto", "never"], default="auto", help=text)
        parser.add_lightning_class_args(guard.Guard, "guard")
        parser.add_lightning_class_args(metrics_table.MetricsTable, "metrics")
        for key, callback in JOBS[self.job].callbacks.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_lightning_class_args(progress.Progress, "progress")
        parser.add_lightning_class_args(release_memory.ReleaseMemory, "release_memory")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(preemption.Preemption, "preemption")
        parser.set_defaults(
            {
                "checkpoint.filename": "iteration-{iteration:04.0f}",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.save_last": "link",
                **{f"checkpoint.{key}": value for key, value in BY_STEP.items()},
                "checkpoint.save_top_k": 2,
                "checkpoint.enable_version_counter": False,  # or a resumed run leaves `last` where it was
                "checkpoint.save_on_train_epoch_end": True,
            }
        )
        given: set[str | int] = set(self.subcommands()[self.command])
        self.method_arguments = parser.add_method_arguments(Trainer, self.command, skip=given)

    @override
    def before_instantiate_classes(self) -> None:
        config = self.settings
        check_values(config)
        if not isinstance(config.trainer, Namespace):
            fail("trainer: expected settings such as {max_epochs: 3}, got null")
        for key in JOBS[self.job].take_pretrained:
            group, _, leaf = key.rpartition(".")
            owner = config.get(group)
            if isinstance(owner, Namespace) and owner.get(leaf) == "":
                owner[leaf] = config.pretrained
            if isinstance(owner, Namespace) and "head_dtype" in owner and owner["head_dtype"] is None:
                owner["head_dtype"] = config.get("head_dtype")
        if config.get("checkpoint"):
            if config.checkpoint.dirpath is None:
                check_folder("trainer.default_root_dir", config.trainer.default_root_dir)
                config.checkpoint.dirpath = str(Path(config.trainer.default_root_dir) / "checkpoints")
            check_folder("checkpoint.dirpath", config.checkpoint.dirpath)
        label_loggers(config.trainer.logger, Path(config.trainer.default_root_dir))
        self.settle_types(config)

    def settle_types(self, config: Namespace) -> None:
        """Replace `auto` as `trainer.precision` and as any `dtype` by a value, and print it."""
        folder = RunFolder(self.parser, config)
        before = folder.settings_to_keep(Path(config.trainer.default_root_dir)) if left_open(config) else {}
        for line in settle(config, before):
            rank_zero_only(print)(line, flush=True)

    @override
    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise ConfigError(f"seed_everything={seed}: expected 0 to {2**32 - 1}")
        super()._set_seed()

    @override
    def instantiate_classes(self) -> None:
        """Left to `build`: a command may look at the settings first."""

    @failed_imports_answered()
    def build(self) -> None:
        """Build the components of the config; errors of libraries are about the config as well."""
        try:
            super().instantiate_classes()
        except BugError as bug:
            raise bug.__cause__ or bug from None
        except (TypeError, ValueError) as error:
            refuse(own_cause(error) or error)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the Trainer; its errors are about the settings below `trainer`."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
            refuse(own_cause(error) or ValueError(f"trainer: {error}"))

    @override
    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint: it restores a run's state; settings are the config's alone."""

    @property
    def settings(self) -> Namespace:
        """The whole config."""
        config: Namespace = self.config
        return config

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the Trainer's method with the command's name."""
        own: dict[str, Any] = {name: self.config_init[name] for name in self.method_arguments}
        return own | {"model": self.model, "datamodule": self.datamodule}

    @property
    def run_folder(self) -> RunFolder:
        """The callback that keeps this run's folder."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next(callback for callback in callbacks if isinstance(callback, RunFolder))


def configure(options: list[str], command: str = "fit") -> CLI:
    """Read the words after a command, `fit` or `validate`, and build what they name."""
    cli = CLI(options, command)
    cli.build()
    return cli
