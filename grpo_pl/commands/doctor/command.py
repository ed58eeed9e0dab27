"""`grpo_pl doctor`: imports a library only after a look at its installation."""

import json

from rich.console import Console

from grpo_pl.commands.doctor.installation import check_installation
from grpo_pl.commands.doctor.machine import check_machine
from grpo_pl.commands.doctor.report import Report
from grpo_pl.commands.options import Options, check_owner, new_file

CONFIGURED = ["components", "model", "data", "run", "engine"]
"""The themes that need a config."""
DESCRIPTION = """Say what is wrong with the machine, the installation, the model, the data and its answers,
memory and disk, and the engine's log-probabilities against the trainer's, and how to fix it. Takes every
option of `fit`; without any it looks at machine and installation alone."""


def doctor(args: list[str]) -> int:
    """Check machine, installation and, given a config, all that it would run; 1 if there is a problem."""
    parser = Options("doctor", DESCRIPTION)
    parser.add_argument("--out", type=new_file, help="a JSON file to write everything to, too")
    parser.add_argument(
        "--engine",
        choices=("true", "false"),
        default="true",
        help="whether to start the engine and compare its log-probabilities, which takes a minute; "
        "servers get other weights meanwhile: no run may be using them",
    )
    own, for_fit = parser.parse_known_args(args)
    check_owner(for_fit)
    report = Report(Console())
    works = report.add("installation", check_installation())
    machine = check_machine()
    if works:
        from grpo_pl.commands.doctor.products import trainers_products

        machine.append(trainers_products())
    report.add("machine", machine)
    if not for_fit:
        report.skip(CONFIGURED, "no --config is given")
    elif not works:
        report.skip(CONFIGURED, "the installation comes first")
    else:
        from grpo_pl.commands.doctor.configured import check_configured

        check_configured(report, for_fit, with_engine=own.engine == "true")
    healthy = report.close()
    if own.out is not None:
        own.out.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return 0 if healthy else 1
