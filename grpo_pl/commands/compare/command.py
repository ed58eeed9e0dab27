"""`grpo_pl compare`."""

import math
from pathlib import Path

from grpo_pl.commands.compare.runs import ACCURACY
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
    add("--base", help="the group to compare with, or the folder of a run of it; default: the first")
    add("--metric", default=ACCURACY, help="the column of metrics.csv to compare (%(default)s)")
    add("--margin", type=float, help="the largest difference of the metric that does not matter")
    add("--out", type=Path, help="folder of the report; default: RUN if there is one, else this one")
    options = parser.parse_args(args)
    if options.margin is not None and not 0 < options.margin < math.inf:
        raise ConfigError(f"compare: --margin={options.margin}: expected more than 0")
    out: Path = options.out or (options.runs[0] if len(options.runs) == 1 else Path())
    if options.out or out.is_dir():
        check_folder("compare: --out", out)
    from grpo_pl.commands.compare.reporting import report

    report(options.runs, out, base=options.base, metric=options.metric, margin=options.margin)
