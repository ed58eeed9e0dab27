"""Configs by name: `--config quickstart` is the file of that path, else the config of grpo_pl."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from grpo_pl.system.refusal import fail, nearest

CONFIGS = Path(__file__).with_name("shipped").resolve()
"""The folder `configs/`: in a clone a link to it, in a wheel its files."""
GLUED = re.compile(r"(--config=|-c=?)(.+)", re.DOTALL)


def own_config(name: str) -> Path | None:
    """The config of grpo_pl with a name: `ablations/cispo`, with or without `configs/` and `.yaml`."""
    path = PurePath(name.removeprefix("./").removeprefix("configs/"))
    if path.is_absolute() or ".." in path.parts:
        return None
    files = (CONFIGS / path, CONFIGS / f"{path}.yaml")
    return next(filter(os.path.isfile, files), None)


def config_file(name: str, refusal: str = "config: there is no file") -> str:
    """The file that a name on the command line means.

    Args:
        name: A path, the name of a config of grpo_pl, or settings in YAML, which stay as they are.
        refusal: Begins the sentence that ends the command for any other name, with the nearest one.
    """
    if not os.path.isfile(name) and (own := own_config(name)):
        return str(own)
    try:
        os.stat(name)
    except FileNotFoundError:
        if ":" not in name:
            names = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")]
            files = [*map(str, Path(name).parent.glob("*")), *(f"configs/{one}.yaml" for one in names)]
            same = [f". Did you mean {one}?" for one in names if PurePath(one).name == PurePath(name).stem]
            fail(f"{refusal} {name}{same[0] if same else nearest(name, files + names)}")
    except (OSError, ValueError):
        pass  # its reader says why it cannot be read
    return name


def with_config_files(words: list[str]) -> Iterator[str]:
    """The command line with the file of each config in place of its name."""
    before = ""
    for i, word in enumerate(words):
        if word == "--":
            yield from words[i:]
            return
        if before in ("--config", "-c") and not word.startswith("-"):
            yield config_file(word)
        elif glued := GLUED.fullmatch(word):
            yield f"{glued[1]}{config_file(glued[2])}"
        else:
            yield word
        before = word
