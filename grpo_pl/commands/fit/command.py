"""`grpo_pl fit` and `grpo_pl validate`: answers help and misspelt options without importing torch."""

from contextlib import redirect_stdout, suppress
from io import StringIO
from itertools import pairwise

from grpo_pl.commands.options import check_owner
from grpo_pl.config.option_names import check_names, help_text
from grpo_pl.system.refusal import ConfigError


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
    """Print the help if the command line asks for it, else refuse a misspelt option; whether it was help."""
    if args in (["-h"], ["--help"]):
        print(help_text(command, lambda: parsers_help(command)), end="")
        return True
    for word, after in pairwise(args):
        if word in ("-h", "--help") and not after.startswith("-"):
            raise ConfigError(f"{command}: {word} takes no value, got {after}: leave it out")
    check_owner(args)
    check_names(command, args)
    return False


def parsers_help(command: str) -> str:
    """The parser's help on a command and its options."""
    from grpo_pl.config.cli import CLI

    with redirect_stdout(StringIO()) as text, suppress(SystemExit):
        CLI(["--help"], command)
    return text.getvalue()
