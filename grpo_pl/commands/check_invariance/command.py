"""`python -m grpo_pl check-invariance`."""

import argparse
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from grpo_pl.config.option_names import check_names

DESCRIPTION = """Sample one rollout, and compare its gradient in float32 over strategies, ranks and
micro-batches. Takes every option of `grpo_pl fit`."""


class Options(argparse.ArgumentParser):
    """The options of `check-invariance` itself."""

    def __init__(self) -> None:
        super().__init__("grpo_pl check-invariance", description=DESCRIPTION, allow_abbrev=False)
        self.add_argument("--out", type=Path, help="a JSON file to write the table to, too")

    @override
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"check-invariance: {message}")


def check_invariance(args: list[str]) -> int:
    """Compare the gradient of one rollout over strategies, ranks and micro-batches; 1 if they differ.

    Raises:
        ValueError: If the config is one that `fit` refuses, or its rollout has no gradient.
    """
    said, options = Options().parse_known_args(args)
    check_names("fit", options)
    from grpo_pl.commands.check_invariance.ways import check

    return check(options, said.out)
