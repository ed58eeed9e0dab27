"""The options of a command itself, beside those of `fit`."""

import argparse
from typing import NoReturn

from typing_extensions import override

from grpo_pl.config.files import read_ahead
from grpo_pl.config.option_names import check_names
from grpo_pl.system.refusal import ConfigError


class Options(argparse.ArgumentParser):
    """Reads a command line; a mistake is answered in one sentence.

    Args:
        command: Its name.
        description: What `--help` prints first.
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
            args: What follows the command.
            policy_alone: Whether the command knows no other job.
        """
        own, for_fit = self.parse_known_args(args)
        check_names("fit", for_fit)
        if policy_alone and read_ahead(for_fit)[0] != "policy":
            raise ConfigError(f"job: {self.command} knows the job policy alone: leave job out")
        return own, for_fit
