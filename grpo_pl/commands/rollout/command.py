"""`python -m grpo_pl rollout`."""

import argparse
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from grpo_pl.config.option_names import check_names

DESCRIPTION = """Sample, score and keep the rollouts of trainer.max_epochs iterations, all by the pretrained
weights, for data.engine ReplayEngine; train nothing. Takes every option of `fit`. Started again, it goes on
where it was."""


class Options(argparse.ArgumentParser):
    """The options of `rollout` itself."""

    def __init__(self) -> None:
        super().__init__("grpo_pl rollout", description=DESCRIPTION, allow_abbrev=False)
        self.add_argument("--out", type=Path, required=True, help="folder of the files, one an iteration")

    @override
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"rollout: {message}")


def rollout(args: list[str]) -> None:
    """Make the files that are not there yet, and say what the folder holds.

    Raises:
        ValueError: If `fit` would refuse the config, or if the folder has rollouts of another one.
    """
    said, options = Options().parse_known_args(args)
    check_names("fit", options)
    from grpo_pl.commands.rollout.offline import make

    make(said.out, options)
