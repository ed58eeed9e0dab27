"""`grpo_pl plan`."""

import json

from grpo_pl.commands.options import Options, new_file

DESCRIPTION = """Say what a run will need of memory and passes, and what is likely not meant; load and run
nothing. Takes every option of `fit`."""


def plan(args: list[str]) -> None:
    """Print what `fit` would need. A config that `fit` would refuse, or of another job, is refused."""
    parser = Options("plan", DESCRIPTION)
    parser.add_argument("--out", type=new_file, help="a JSON file to write the plan to, too")
    own, for_fit = parser.split(args, policy_alone=True)
    from rich.console import Console

    from grpo_pl.commands.engine import of_policy
    from grpo_pl.commands.plan.report import as_json, show
    from grpo_pl.commands.plan.requirements import read_requirements
    from grpo_pl.config.cli import configure

    run = read_requirements(*of_policy(configure(for_fit)))
    show(run, Console())
    if own.out is not None:
        own.out.write_text(json.dumps(as_json(run), indent=2) + "\n", encoding="utf-8")
