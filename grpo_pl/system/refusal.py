"""Refuses a user's mistake: one sentence, the nearest right name, exit code 2."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class ConfigError(ValueError):
    """A user's mistake: in a setting, a data file, a model folder, a checkpoint.

    Its message is one sentence: what is wrong, what is expected, what to change. A command ends with it and
    exit code 2; a plain ValueError is a bug and shows its traceback.

    Args:
        sentence: About a whole component if `of` is given; otherwise it names the keys in full.
        of: The component that the sentence is about.
    """

    joint = ": "
    """Stands between the key of a component and the sentence."""

    def __init__(self, sentence: str, of: object = None) -> None:
        super().__init__(sentence)
        self._placed = False
        self.put(getattr(of, KEY, ""))

    def put(self, key: str) -> None:
        """Put the key of the component before the sentence, unless one stands there."""
        if key and not self._placed:
            self.args = (f"{key}{self.joint}{self}",)
            self._placed = True


class ArgumentError(ConfigError):
    """A mistake in an argument of a component: the sentence begins with the argument's name.

    A component does not know where it stands in a config. The config layer (`config/places.py`) does: it puts
    the key before what a constructor raises, and marks what it builds for errors that are raised later.
    """

    joint = "."


def check_at_least(lowest: int, **arguments: int | float) -> None:
    """Refuse an argument of a component that is below the lowest value."""
    for name, value in arguments.items():
        if value < lowest:
            raise ArgumentError(f"{name}={value}: expected {lowest} or more")


@contextmanager
def about(component: object) -> Iterator[None]:
    """In the body, an ArgumentError is about an argument of this component."""
    try:
        yield
    except ArgumentError as error:
        error.put(getattr(component, KEY, ""))
        raise


@contextmanager
def inside(place: str) -> Iterator[None]:
    """In the body, every refusal begins with a place: the part of a file that holds the config."""
    _places.append(place)
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    finally:
        _places.pop()


_places: list[str] = []
KEY = "_config_key"
"""The attribute in which a component that a config has built carries its key."""


def name_of(component: object) -> str:
    """The key of a component that a config has built, else its class."""
    return getattr(component, KEY, "") or type(component).__name__


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
    print("grpo_pl: error:", " ".join(": ".join([*_places, sentence]).split()), file=sys.stderr)
    raise SystemExit(2)
