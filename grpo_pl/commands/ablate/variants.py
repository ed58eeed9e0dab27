"""The variants of a study, as its file describes them: each by its name, or all cells of its factors."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from grpo_pl.commands.compare.cells import NAME, cell_levels, cell_name
from grpo_pl.config.by_name import own_config
from grpo_pl.config.files import shortened
from grpo_pl.system.refusal import ConfigError, nearest

Part = Path | dict[str, Any]
"""A config file, or settings that stand in the study itself."""
DESIGNS = "one_at_a_time", "factorial"
EXAMPLE = "for instance `variants: {grpo: {}, no_kl: {model: {kl: null}}}`"
EXAMPLE_FACTORS = "for instance `factors: {kl: {k3: {}, none: {model: {kl: null}}}}`"
MOST_CELLS, LONGEST_NAME = 512, 200


def variants_of(content: Mapping[str, Any], where: str, folder: Path) -> dict[str, list[Part]]:
    """Name -> its configs; of a factorial study one for each combination of levels.

    The first one has the first level of every factor. Later factors lie over earlier ones.

    Args:
        content: The study's file.
        where: The file, as messages name it.
        folder: What paths in it are relative to.
    """
    design = content.get("design", DESIGNS[0])
    if design not in DESIGNS:
        raise ConfigError(
            f"{where}: design: expected one of {', '.join(DESIGNS)}, got {shortened(design)}"
            f"{nearest(str(design), DESIGNS)}"
        )
    factorial = design == "factorial"
    if factorial and "variants" in content:
        raise ConfigError(f"{where}: variants: a factorial study has factors instead, {EXAMPLE_FACTORS}")
    if factorial:
        return cells(content.get("factors"), where, folder)
    if "factors" in content:
        raise ConfigError(f"{where}: factors: set design: factorial, or name variants instead")
    variants = named(content.get("variants"), f"{where}: variants", EXAMPLE)
    return {name: parts_of(value, f"{where}: variants.{name}", folder) for name, value in variants.items()}


def cells(value: Any, where: str, folder: Path) -> dict[str, list[Part]]:
    """All combinations of the levels of all factors."""
    factors = {
        factor: {
            level: parts_of(parts, f"{where}: factors.{factor}.{level}", folder)
            for level, parts in named(levels, f"{where}: factors.{factor}", EXAMPLE_FACTORS).items()
        }
        for factor, levels in named(value, f"{where}: factors", EXAMPLE_FACTORS).items()
    }
    for factor, levels in factors.items():
        if len(levels) < 2:
            raise ConfigError(f"{where}: factors.{factor}: expected two levels or more, its base first")
    if (count := prod(map(len, factors.values()))) > MOST_CELLS:
        raise ConfigError(f"{where}: factors: they have {count} combinations, expected {MOST_CELLS} or fewer")
    found = {}
    for chosen in product(*(levels.items() for levels in factors.values())):
        name = cell_name({factor: level for factor, (level, _) in zip(factors, chosen, strict=True)})
        if len(name) > LONGEST_NAME:
            raise ConfigError(f"{where}: factors: {name} is to name a folder: use shorter names")
        found[name] = [part for _, parts in chosen for part in parts]
    return found


def named(value: Any, where: str, example: str) -> dict[str, Any]:
    """A mapping whose keys can be in the name of a folder."""
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where}: expected a name and its settings for each, {example}")
    for name in value:
        if isinstance(name, bool) or not re.fullmatch(NAME, str(name)):
            raise ConfigError(
                f"{where}: {name!r} is to name a folder: use letters, digits, _ - +"
                + (", and quotes around on, off, yes and no" if isinstance(name, bool) else "")
            )
    return {str(name): inside for name, inside in value.items()}


def parts_of(value: Any, where: str, folder: Path) -> list[Part]:
    """A config file, settings, or a list of both."""
    if value is None:
        return []
    if isinstance(value, list):
        return [part for one in value for part in parts_of(one, where, folder)]
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, str):
        raise ConfigError(
            f"{where}: expected a config file, settings, or a list of both, got {shortened(value)}"
        )
    path = folder / value
    if not path.is_file():
        path = own_config(value) or path
    if not path.is_file():
        raise ConfigError(f"{where}: there is no file {path}")
    return [path]


def named_variants(value: Any, variants: Sequence[str]) -> list[str]:
    """The variants that `--variants` names, in the study's order: by name, or by levels of factors.

    Args:
        value: A name, or a list of names.
        variants: All of the study.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"ablate: --variants: expected names such as '[{variants[0]}]', got {shortened(value)}"
        )
    levels = {variant: cell_levels(variant).items() for variant in variants}
    known = dict.fromkeys([*variants, *(f"{f}={level}" for cell in levels.values() for f, level in cell)])
    found = set()
    for name in names:
        wanted = cell_levels(name).items()
        chosen = {v for v in variants if v == name or (wanted and wanted <= levels[v])}
        if not chosen:
            instead = nearest(name, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"ablate: --variants: there is no {name}{instead}")
        found |= chosen
    return [variant for variant in variants if variant in found]
