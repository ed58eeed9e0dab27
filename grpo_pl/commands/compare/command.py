"""`python -m grpo_pl compare`."""

import argparse
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from grpo_pl.commands.compare.runs import ACCURACY

DESCRIPTION = """Compare runs: what differs, what it brings and what it costs, as a table, report.html and
report.md. Runs that differ in nothing but seeds and folders are repetitions of each other."""


class Options(argparse.ArgumentParser):
    """The options of `compare`."""

    def __init__(self) -> None:
        super().__init__("grpo_pl compare", description=DESCRIPTION, allow_abbrev=False)
        say = self.add_argument
        say(
            "runs",
            type=Path,
            nargs="+",
            metavar="RUN",
            help="a run's folder, or one with <variant>/seed-<n> in it",
        )
        say("--base", help="the group to compare with, or the folder of a run of it; default: the first")
        say("--metric", default=ACCURACY, help="the column of metrics.csv to compare (%(default)s)")
        say("--out", type=Path, help="folder of the report; default: RUN if there is one, else this one")

    @override
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"compare: {message}")


def compare(args: list[str]) -> None:
    """Compare the runs that a command line names, print the tables and write the report.

    Raises:
        ValueError: If they cannot be compared.
    """
    options = Options().parse_args(args)
    from grpo_pl.commands.compare.reporting import report

    out: Path = options.out or (options.runs[0] if len(options.runs) == 1 else Path())
    report(options.runs, out, base=options.base, metric=options.metric)
