"""Run folders: one run per folder, one process at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from grpo_pl.runs import slurm_job
from grpo_pl.runs.layout import (
    CONFIG_FILE,
    ENDED_FILE,
    LAST,
    LOCK_FILE,
    METRICS_FILE,
    ROLLOUTS_FOLDER,
    move_aside,
    sweep,
)
from grpo_pl.runs.lock import Lock
from grpo_pl.runs.manifest import checkpoints, newest_first
from grpo_pl.runs.preemption import checkpointing
from grpo_pl.system.atomic_files import write_atomically
from grpo_pl.system.collectives import agreed, first_rank_says
from grpo_pl.system.precision import AUTO
from grpo_pl.system.refusal import ConfigError

FREE = (
    *("resume", "trainer.default_root_dir", "trainer.max_epochs", "trainer.max_steps"),
    *("data.changed_prompts", "data.changed_examples"),
)
"""Settings that may differ when an unfinished run resumes: they do not change what an iteration does."""


TYPES = ".precision", ".dtype"
"""Settings whose `auto` means the type of the run's start."""


class RunFolder(SaveConfigCallback):
    """Prepares the run's folder after all checks: moves an ended run aside, writes `config.yaml`.

    An unfinished run resumes by itself under the same settings. That is decided before anything changes in
    the folder, so that all ranks decide alike. Without the command `fit`, a Trainer holds no folder, and none
    is touched.
    """

    lock: Lock | None = None

    @contextmanager
    def occupied(self, trainer: pl.Trainer) -> Iterator[str | None]:
        """Hold the folder while the body runs; gives the checkpoint that the run begins with.

        Refuses a folder that another process holds, or whose settings cannot be read.
        """
        self.folder = Path(trainer.default_root_dir)
        self.lock = Lock(self.folder)
        if trainer.is_global_zero:
            self.lock.take()
        try:
            yield self._beginning(checkpointing(trainer).folder)
        finally:
            self.lock.leave()
            self.lock = None

    def _beginning(self, saved: Path) -> str | None:
        named = self.config.get("ckpt_path")
        self.continues = named == "last" or (self.may_go_on() and not self.changed())
        if not self.continues:
            return str(named) if named else None
        if checkpoints(saved) or (saved / LAST).is_symlink():
            return str(saved / LAST)
        return None if named == "last" else named

    def may_go_on(self) -> bool:
        """Whether the folder's run is unfinished, or in a job that SLURM has requeued."""
        ended, anew = (self.folder / ENDED_FILE).exists(), self.config.get("resume") == "never"
        open_ended = not (ended or anew) or slurm_job.was_requeued(self.folder)
        return open_ended and (self.folder / CONFIG_FILE).exists()

    def has_ended(self, folder: Path, settings: dict[str, Any]) -> bool:
        """Whether a folder holds a finished run of exactly these settings, wherever they place it."""
        self.folder = folder
        place = "resume", "trainer.default_root_dir"
        ended = (folder / ENDED_FILE).exists() and (folder / CONFIG_FILE).exists()
        return ended and not self.changed(place, settings)

    def settings_to_keep(self, folder: Path) -> dict[str, Any]:
        """The settings of the folder's run, if this run resumes it: its `auto` values are kept."""
        self.folder = folder
        if self.config.get("ckpt_path") == "last":
            return self._read_settings() if (folder / CONFIG_FILE).exists() else {}
        return self._read_settings() if self.may_go_on() and not self.changed() else {}

    def settings(self) -> dict[str, Any]:
        """The settings of this run, as `config.yaml` holds them."""
        settings: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        return settings

    def changed(self, free: Sequence[str] = FREE, settings: dict[str, Any] | None = None) -> list[str]:
        """The keys, except the `free` ones, whose values differ from those of the folder's run.

        Args:
            free: Keys whose values may differ.
            settings: Those to compare; None for this run's.
        """
        keys = different(plain(self._read_settings()), plain(settings or self.settings()))
        return sorted(key for key in keys if key not in free)

    def _read_settings(self) -> dict[str, Any]:
        path = self.folder / CONFIG_FILE
        try:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            before = None
        if not isinstance(before, dict):
            raise ConfigError(
                f"{path} is torn, so that nobody can tell whether its run goes on: --ckpt_path last "
                "continues it, --resume never moves it aside"
            )
        return before

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse ranks with different precisions; the folder is not touched before models are loaded."""
        local, first = trainer.precision, first_rank_says(trainer.precision)
        if wrong := agreed(
            "" if local == first else f"rank {trainer.global_rank} has {local}, rank 0 {first}"
        ):
            raise ConfigError(
                f"trainer.precision=auto differs between this run's machines ({wrong}): set it to 32-true "
                "or bf16-mixed, and data.engine.dtype like it"
            )

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.lock is None or not trainer.is_global_zero:
            return
        self.prepare(trainer)
        if job := slurm_job.current():
            job.write(self.folder)

    def prepare(self, trainer: pl.Trainer) -> None:
        """Move an ended run aside, remove half-written files, write `config.yaml`."""
        saved = checkpointing(trainer).folder
        if self.continues:
            self._say_where_it_goes_on(saved)
        elif (self.folder / METRICS_FILE).exists():
            self._begin_anew()
        for folder in (self.folder, saved, self.folder / ROLLOUTS_FOLDER):
            sweep(folder)
        (self.folder / ENDED_FILE).unlink(missing_ok=True)
        write_config(self.parser, self.config, self.folder)

    def end(self, trainer: pl.Trainer) -> None:
        """Mark the run as finished: the same command starts a new run from now on."""
        if trainer.is_global_zero:
            write_atomically(self.folder / ENDED_FILE, "{}\n")

    def _say_where_it_goes_on(self, saved: Path) -> None:
        anew = "; --resume never starts anew" if self.config.get("ckpt_path") != "last" else ""
        if kept := newest_first(saved):
            print(f"The run of {self.folder} goes on from {kept[0][0].name}{anew}.")
        elif (self.folder / METRICS_FILE).exists():
            print(f"The run of {self.folder} was stopped before its first checkpoint and begins again{anew}.")

    def _begin_anew(self) -> None:
        named = self.config.get("ckpt_path")
        if named is not None and self.folder.resolve() in Path(named).resolve().parents:
            return
        if self.may_go_on() and (keys := self.changed()):
            print(f"Not continued: the run of {self.folder} has other settings of {', '.join(keys)}.")
        kept = move_aside(self.folder)
        assert self.lock is not None, "occupied() comes first"
        self.lock.take()
        (kept / LOCK_FILE).unlink(missing_ok=True)


def write_config(parser: ArgumentParser, config: Namespace, folder: Path) -> None:
    """Write `config.yaml` into a run's folder; `fit --config` on it resumes the run."""
    config = config.clone()
    config["resume"] = "auto"
    write_atomically(folder / CONFIG_FILE, parser.dump(config, skip_unset=False))


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the paths of its own checkpoints."""
    root, saving = config.get("trainer", {}).get("default_root_dir"), config.get("checkpoint", {})
    default = root is not None and saving.get("dirpath") == str(Path(root) / "checkpoints")
    last = config.get("ckpt_path") == "last"
    changes = {"checkpoint": saving | {"dirpath": None}} if default else {}
    return config | changes | ({"ckpt_path": None} if last else {})


def different(a: Any, b: Any, key: str = "") -> Iterator[str]:
    """The keys with different values, without server addresses, which change with every job.

    A type that `b` leaves open (`auto`) is as in `a`, and a class of grpo_pl is the same wherever an older
    version kept it. A value equals its spelling: `--trainer.devices 1` is read as "1", from a file as 1.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for name in a.keys() | b.keys():
            yield from different(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif key.endswith("class_path") and str(a).startswith("grpo_pl.") and str(b).startswith("grpo_pl."):
        if a.rpartition(".")[2] != b.rpartition(".")[2]:
            yield key
    elif a != b and str(a) != str(b) and not key.endswith((*TYPES, ".urls") if b == AUTO else ".urls"):
        yield key
