"""`python -m grpo_pl doctor`: imports nothing that could be what is broken before it has looked."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from grpo_pl.diagnosis.installation import check_installation
from grpo_pl.diagnosis.machine import check_machine
from grpo_pl.diagnosis.report import Report
from grpo_pl.quiet import tame_logs

CONFIGURED = ["components", "model", "run", "engine"]
"""The themes that need a config."""


def doctor(args: list[str]) -> int:
    """Check machine, installation and, given a config, all that it would run; 1 if there is a problem.

    Raises:
        SystemExit: With code 2 and one sentence if the command line or the config is a mistake.
    """
    parser = argparse.ArgumentParser(
        prog="grpo_pl doctor",
        description="Say what is wrong with the machine, the installation, the model, the engine's "
        "log-probabilities against the trainer's, memory and disk, and how to mend it. Takes every option of "
        "`grpo_pl fit`; without any it looks at machine and installation alone.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, help="a JSON file to write everything to, too")
    parser.add_argument(
        "--engine",
        choices=("true", "false"),
        default="true",
        help="whether to start the engine and compare its log-probabilities (a minute; servers get other "
        "weights: none may be in use)",
    )
    said, options = parser.parse_known_args(args)
    tame_logs()
    report = Report(Console())
    works = report.add("installation", check_installation())
    report.add("machine", check_machine())
    if not options:
        report.skip(CONFIGURED, "no --config is given")
    elif not works:
        report.skip(CONFIGURED, "the installation comes first")
    else:
        from grpo_pl.cli import mistakes_answered
        from grpo_pl.diagnosis.configured import check_configured

        tame_logs()  # Lightning, imported since, sets levels of its own
        with mistakes_answered():
            check_configured(report, options, with_engine=said.engine == "true")
    healthy = report.close()
    if said.out is not None:
        said.out.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return 0 if healthy else 1
