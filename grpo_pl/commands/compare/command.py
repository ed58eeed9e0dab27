"""`grpo_pl compare`."""

import math
from pathlib import Path

from grpo_pl.commands.compare.declared import declared
from grpo_pl.commands.options import Options
from grpo_pl.system.folders import check_folder
from grpo_pl.system.refusal import ConfigError

DESCRIPTION = """Compare runs: what differs, what it brings and what it costs, as a table, report.html and
report.md. Runs that differ in nothing but seeds and folders are repetitions of each other."""


def compare(args: list[str]) -> None:
    """Compare the runs of a command line, print the tables and write the report."""
    parser = Options("compare", DESCRIPTION)
    add = parser.add_argument
    runs = "a run's folder, or one with <variant>/seed-<n> in it"
    add("runs", type=Path, nargs="+", metavar="RUN", help=runs)
    add(
        "--base",
        help="the group to compare with, or the folder of a run of it; default: a study's, or the first",
    )
    add("--metric", help="the column of metrics.csv to compare; default: a study's, or val/accuracy")
    add(
        "--margin",
        type=float,
        help="the largest difference that does not matter; default: a study's, or none",
    )
    add("--out", type=Path, help="folder of the report; default: RUN if there is one, else this one")
    options = parser.parse_args(args)
    if options.margin is not None and not 0 < options.margin < math.inf:
        raise ConfigError(f"compare: --margin={options.margin}: expected more than 0")
    out: Path = options.out or (options.runs[0] if len(options.runs) == 1 else Path())
    if options.out or out.is_dir():
        check_folder("compare: --out", out)
    from grpo_pl.commands.compare.reporting import report

    study = declared(options.runs)
    report(
        options.runs,
        out,
        base=options.base or study.base,
        metric=options.metric or study.metric,
        margin=options.margin or study.margin,
    )
