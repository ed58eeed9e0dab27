"""The options of a command itself, as opposed to those of `fit`."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from grpo_pl.config.files import read_ahead
from grpo_pl.config.option_names import check_names, names_in
from grpo_pl.system.refusal import ConfigError


def new_file(text: str) -> Path:
    """The type of an option that names a file to write: refused before the work whose result it takes."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: name a file in a folder that exists")
    return path


OF_COMMANDS = {
    "ablate": ("dry-run", "jobs", "out", "pilot", "seeds", "slurm", "variants"),
    "bench": ("against", "iterations", "no-scaling", "out", "peer", "peer-iterations", "scaling"),
    "check-invariance": ("out",),
    "compare": ("base", "margin", "metric", "out"),
    "doctor": ("engine", "out"),
    "export": ("model", "pretrained"),
    "filter-prompts": ("high", "low", "unseen"),
    "plan": ("out",),
    "prepare": (),
    "reward-data": (
        *("continuations", "pairs-per-prompt", "prompts", "samples", "steps", "val-share", "verifier"),
    ),
    "rollout": ("out",),
    "submit": (
        *("cpus-per-task", "dry-run", "gpus-per-node", "nodes", "partition", "sbatch", "server-args"),
        *("server-nodes", "time", "warning-s"),
    ),
    "tiny-model": ("seed", "sizes", "template", "untied", "vocabulary"),
}
"""The options of each command itself; here, since a wrong option must not import all commands."""
OF_FIT = ("model", "pretrained", "samples")
"""The names in `OF_COMMANDS` that `fit` knows too."""


def check_owner(words: list[str]) -> None:
    """Refuse an option of another command among those of `fit`."""
    for name in names_in(words):
        owners = [f"`{owner}`" for owner, options in OF_COMMANDS.items() if name in options]
        if owners and name not in OF_FIT:
            raise ConfigError(f"there is no option {name} here: --{name} belongs to {', '.join(owners)}")


def check_at_least(command: str, options: argparse.Namespace, **lowest: int) -> None:
    """Refuse a command's own option that is below its lowest value."""
    for name, least in lowest.items():
        if (value := getattr(options, name)) < least:
            raise ConfigError(f"{command}: --{name.replace('_', '-')}={value}: expected {least} or more")


class Options(argparse.ArgumentParser):
    """Parses a command's own options; a mistake becomes one sentence.

    Args:
        command: The command's name.
        description: The first lines of `--help`.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(f"grpo_pl {command}", description=description, allow_abbrev=False)
        self.command = command

    @override
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.command}: {message}")

    def split(self, args: list[str], *, policy_alone: bool = False) -> tuple[argparse.Namespace, list[str]]:
        """The command's own options, and those of `fit`, whose names are checked.

        Args:
            args: The words after the command.
            policy_alone: Whether the command knows no job but `policy`.
        """
        own, for_fit = self.parse_known_args(args)
        check_owner(for_fit)
        if policy_alone and read_ahead(for_fit)[0] != "policy":
            raise ConfigError(f"job: {self.command} knows the job policy alone: leave job out")
        check_names("fit", for_fit)
        return own, for_fit
