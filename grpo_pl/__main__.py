"""`grpo_pl COMMAND ...`, or `python -m grpo_pl COMMAND ...`; the commands stand in `commands.table`."""

import sys
from pathlib import Path

from grpo_pl.commands.table import answer, command
from grpo_pl.config.by_name import with_config_files
from grpo_pl.config.exits import mistakes_answered
from grpo_pl.system.output import tame_logs


def main(args: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence and exit code 2.

    Args:
        args: What follows the program's name; null for what it was started with.
    """
    args = sys.argv[1:] if args is None else args
    if answer(args):
        return
    tame_logs()
    with mistakes_answered():
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)  # where a user's components are: `python -m` does so, a script does not
        code = command(args[0])(list(with_config_files(args[1:])))
        if code is not None:
            raise SystemExit(code)


if __name__ == "__main__":
    main()
