"""Caches the option names of `fit` and `validate` for the user.

Reading a command line imports everything that it may name. A misspelt name, and `--help`, are answered from
the cache of the last command that had imported all. A name inside a component is left to the parser.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from grpo_pl.config.files import config_files, read_ahead, read_config
from grpo_pl.system.atomic_files import write_atomically
from grpo_pl.system.refusal import fail, no_such_option

PACKAGE = Path(__file__).parents[1]
DECIDE = "torch", "lightning", "jsonargparse"
"""The libraries whose signatures become options."""
OPTION = re.compile(r"--([A-Za-z_][\w.-]*)\+?(?:=.*)?", re.DOTALL)


class Names(NamedTuple):
    """The names of one command and job."""

    options: list[str]
    groups: list[str]
    """Options that only hold others, all of which are listed."""

    def surely_lack(self, name: str) -> bool:
        """Whether the parser would refuse it, whatever components a config names."""
        owners = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
        open_to_more = any(owner in self.options and owner not in self.groups for owner in owners)
        return name not in self.options and not open_to_more


def check_names(command: str, words: list[str]) -> None:
    """Refuse a misspelt option after a command, or in its config files, if the names are known."""
    job, written_by = read_ahead(words)
    of_commands = kept(job)
    if command not in of_commands:
        return
    names = Names(*of_commands[command])
    for name in (*names_in(words), *names_in_configs(words, names)):
        if names.surely_lack(name):
            fail(no_such_option(name, names.options) + written_by)


def names_in(words: list[str]) -> Iterator[str]:
    """The options on a command line."""
    for word in words:
        if word == "--":
            return
        if option := OPTION.fullmatch(word):
            yield option[1].rstrip("+")


def names_in_configs(words: list[str], names: Names) -> Iterator[str]:
    """The settings in the config files of a command line, down to the options."""
    for path in config_files(words):
        with suppress(FileNotFoundError):  # the parser says so, with the nearest name
            yield from names_in_settings(read_config(path), names)


def names_in_settings(settings: Mapping[str, Any], names: Names, group: str = "") -> Iterator[str]:
    """The keys of nested settings, down to the components."""
    for key, value in settings.items():
        name = f"{group}{key}"
        if isinstance(value, dict) and (name in names.groups or names.surely_lack(name)):
            yield from names_in_settings(value, names, f"{name}.")
        else:
            yield name.rstrip("+")


def keep(job: str, command: str, names: Names) -> None:
    """Cache the names of a command for a job, unless they are cached."""
    known = kept(job)
    if command not in known:
        write(kept_in(f"options-{job}"), known | {command: names})


def kept(job: str) -> dict[str, list[list[str]]]:
    """Command -> its cached names; empty if other code has written them."""
    return read(kept_in(f"options-{job}"))


def help_text(command: str, make: Callable[[], str]) -> str:
    """The `--help` of a command, made once for each width of a terminal, since `make` takes all imports."""
    texts = read(kept_in("help"))
    key = f"{command}, {shutil.get_terminal_size().columns} columns"
    if key not in texts:
        texts[key] = make()
        write(kept_in("help"), texts)
    return str(texts[key])


def read(path: Path) -> dict[str, Any]:
    """The content of a cache file; empty if other code has written it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(content["kept"]) if content.get("of") == state() else {}


def write(path: Path, what: Mapping[str, Any]) -> None:
    """Write a cache file, if that is permitted."""
    with suppress(OSError):  # nobody needs it: the parser knows as much
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"of": state(), "kept": what}))


def kept_in(name: str) -> Path:
    """A cache file of this copy of grpo_pl."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    copy = hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:12]
    return Path(folder) / "grpo_pl" / f"{name}-{copy}.json"


@cache
def state() -> str:
    """A text that changes with any code that options come from."""
    hashed = hashlib.sha256(repr([sys.version, *map(version, DECIDE)]).encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()
