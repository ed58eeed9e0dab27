"""How a command refuses what a user wrote: one sentence, the nearest right name, exit code 2."""

import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn


class ConfigError(ValueError):
    """A mistake in what the user gave: a setting, a data file, a model folder, a checkpoint.

    The message is one sentence: what is wrong, what is expected, what to change. A command ends with it and with
    exit code 2; a plain ValueError is a bug and shows its traceback.
    """


def no_such_option(wrong: str, options: Iterable[str]) -> str:
    """Names the nearest option in the same group, else anywhere, else all of the group."""
    group, _, leaf = wrong.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in options if name.rpartition(".")[0] == group}
    if near := difflib.get_close_matches(leaf, beside, n=1):
        return f"there is no option {wrong}. Did you mean {beside[near[0]]}?"
    has = f"; {group} has {', '.join(sorted(beside))}" if group and beside else nearest(wrong, options)
    return f"there is no option {wrong}{has}"


def nearest(wrong: str, names: Iterable[str]) -> str:
    """A question, if there is a name much like the wrong one."""
    near = difflib.get_close_matches(wrong, list(names), n=1, cutoff=0.7)
    return f". Did you mean {near[0]}?" if near else ""


def fail(sentence: str) -> NoReturn:
    """Say what is wrong, in one line, and end with exit code 2."""
    sys.stdout.flush()
    print(f"grpo_pl: error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(2)
