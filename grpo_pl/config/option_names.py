"""The options of `fit` and `validate` as their parser knows them, kept in the user's cache.

To read a command line takes the imports of everything that it may name. A misspelt name, and `--help`, are
answered from what the last command that had imported all has left here. A name inside a component is left to
the parser.
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
    """Those of one command and job."""

    options: list[str]
    groups: list[str]
    """Options that only hold others, all of which are listed."""

    def surely_lack(self, name: str) -> bool:
        """Whether the parser would refuse it, whatever components a config names."""
        owners = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
        open_to_more = any(owner in self.options and owner not in self.groups for owner in owners)
        return name not in self.options and not open_to_more


def check_names(command: str, words: list[str]) -> None:
    """Refuse a misspelt option of a command line or its config files, if all names are known.

    Args:
        command: `fit` or `validate`.
        words: What follows it.
    """
    job, written_by = read_ahead(words)
    names = kept(job).get(command)
    if names is None:
        return
    for name in (*names_in(words), *names_in_configs(words, Names(*names))):
        if Names(*names).surely_lack(name):
            fail(no_such_option(name, names[0]) + written_by)


def names_in(words: list[str]) -> Iterator[str]:
    """The options on a command line."""
    for word in words:
        if word == "--":
            return
        if option := OPTION.fullmatch(word):
            yield option[1].rstrip("+")


def names_in_configs(words: list[str], names: Names) -> Iterator[str]:
    """The settings in the config files that a command line names, as far as they are options."""
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


def keep(job: str, names: Mapping[str, Names]) -> None:
    """Write down the names of all commands, where that is allowed and was not done before.

    Args:
        job: What is trained.
        names: Command -> its names.
    """
    if not kept(job):
        write(kept_in(f"options-{job}"), names)


def kept(job: str) -> dict[str, list[list[str]]]:
    """Command -> its names; empty if other code has written them."""
    return read(kept_in(f"options-{job}"))


def help_text(command: str, make: Callable[[], str]) -> str:
    """What `--help` of a command prints, made once for each width of a terminal.

    Args:
        command: Its name.
        make: Has the parser write it, which takes all imports.
    """
    texts = read(kept_in("help"))
    key = f"{command}, {shutil.get_terminal_size().columns} columns"
    if key not in texts:
        texts[key] = make()
        write(kept_in("help"), texts)
    return str(texts[key])


def read(path: Path) -> dict[str, Any]:
    """What a file keeps; nothing if other code has written it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(found["kept"]) if found.get("of") == state() else {}


def write(path: Path, what: Mapping[str, Any]) -> None:
    """Keep something in a file, where that is allowed."""
    with suppress(OSError):  # nobody needs it: the parser knows as much
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"of": state(), "kept": what}))


def kept_in(name: str) -> Path:
    """A file; another one for each copy of grpo_pl."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    copy = hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:12]
    return Path(folder) / "grpo_pl" / f"{name}-{copy}.json"


@cache
def state() -> str:
    """A text that is another one when any code has changed that options come from."""
    hashed = hashlib.sha256(repr([sys.version, *map(version, DECIDE)]).encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()
