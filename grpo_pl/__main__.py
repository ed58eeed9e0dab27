"""`python -m grpo_pl {fit,validate,plan,submit,check-invariance,doctor,rollout,ablate,compare} ...`.

A command imports what it needs when it is run: those that need no torch answer without it.
"""

import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import TYPE_CHECKING

from grpo_pl.commands.table import answer
from grpo_pl.config.exits import mistakes_answered
from grpo_pl.system.output import tame_logs

if TYPE_CHECKING:
    from grpo_pl.config.cli import Checked


def main(args: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence and exit code 2.

    Args:
        args: What follows the program's name; null for what it was started with.
    """
    args = sys.argv[1:] if args is None else args
    if answer(args):
        return
    if args[0] == "doctor":  # it imports the rest itself, which may be what is broken
        from grpo_pl.commands.doctor.command import doctor

        sys.exit(doctor(args[1:]))
    tame_logs()
    with mistakes_answered():
        code = run(args[0], args[1:])
        if code is not None:
            raise SystemExit(code)


def run(command: str, args: list[str]) -> int | None:
    """Run a command; its exit code where it has one of its own."""
    if command == "compare":
        from grpo_pl.commands.compare.command import run as compare

        compare(args)
    elif command == "submit":
        from grpo_pl.commands.submit.command import submit

        submit(args, check)
    elif command == "ablate":
        from grpo_pl.commands.ablate.command import ablate

        return ablate(args, check)
    elif command == "check-invariance":
        from grpo_pl.commands.check_invariance.command import check_invariance

        return check_invariance(args)
    elif command == "rollout":
        from grpo_pl.commands.rollout.command import rollout

        rollout(args)
    else:
        configured(command, args)
    return None


def configured(command: str, args: list[str]) -> None:
    """Run one of the commands that read a config."""
    from grpo_pl.config.option_names import check_names, help_text

    if args in (["-h"], ["--help"]):
        print(help_text(command, lambda: parsers_help(command)), end="")
        return
    check_names(command, args)
    from grpo_pl.config import cli

    cli.configure([command, *args])


def parsers_help(command: str) -> str:
    """What the parser of a command writes of its options."""
    from grpo_pl.config import cli

    with redirect_stdout(StringIO()) as text, suppress(SystemExit):
        cli.configure([command, "--help"])
    return text.getvalue()


def check(for_fit: list[str]) -> "Checked":
    """Read and check what is for `fit`."""
    from grpo_pl.config import cli

    return cli.check(for_fit)


if __name__ == "__main__":
    main()
