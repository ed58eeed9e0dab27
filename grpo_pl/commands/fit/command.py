"""`grpo_pl fit` and `grpo_pl validate`: their help and misspelt options are answered without torch."""

from contextlib import redirect_stdout, suppress
from io import StringIO

from grpo_pl.config.option_names import check_names, help_text


def fit(args: list[str]) -> None:
    """Train what a config describes."""
    if answered("fit", args):
        return
    from grpo_pl.commands.fit.running import run_fit

    run_fit(args)


def validate(args: list[str]) -> None:
    """Measure the accuracy of what a config describes."""
    if answered("validate", args):
        return
    from grpo_pl.commands.fit.running import run_validate

    run_validate(args)


def answered(command: str, args: list[str]) -> bool:
    """Whether a command line asks for the help, which is printed.

    Raises:
        SystemExit: With code 2 and one sentence if an option is surely misspelt.
    """
    if args in (["-h"], ["--help"]):
        print(help_text(command, lambda: parsers_help(command)), end="")
        return True
    check_names(command, args)
    return False


def parsers_help(command: str) -> str:
    """What the parser of a command writes of its options."""
    from grpo_pl.config.cli import CLI

    with redirect_stdout(StringIO()) as text, suppress(SystemExit):
        CLI(["--help"], command)
    return text.getvalue()
