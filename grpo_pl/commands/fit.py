"""`grpo_pl fit` and `grpo_pl validate`."""

from contextlib import redirect_stdout, suppress
from io import StringIO

from grpo_pl.config.option_names import check_names, help_text


def fit(args: list[str]) -> None:
    """Train what a config says."""
    configured("fit", args)


def validate(args: list[str]) -> None:
    """Measure the accuracy of what a config says."""
    configured("validate", args)


def plan(args: list[str]) -> None:
    """Say what a run will need."""
    configured("plan", args)


def configured(command: str, args: list[str]) -> None:
    """Run one of the commands that read a config."""
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
