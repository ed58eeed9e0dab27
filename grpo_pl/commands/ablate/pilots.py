"""Pilot runs of a study: which settings are tried for each variant before the study itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from grpo_pl.commands.compare.cells import cell_levels, cell_name
from grpo_pl.config.files import shortened
from grpo_pl.system.refusal import ConfigError

if TYPE_CHECKING:
    from grpo_pl.commands.ablate.study import RunBudget

Setting = tuple[tuple[str, Any], ...]
"""Dotted keys and their values."""
EXAMPLE = "for instance `tune: {model.optimizer.init_args.lr: [3e-5, 1e-4, 3e-4], seeds: [101, 102]}`"


@dataclass(frozen=True)
class Tuning:
    """What is tried for each variant: every combination of values, with every seed."""

    grid: dict[str, list[Any]]
    """Dotted key -> its values."""
    seeds: list[int]
    """None of the study's: what suits those would suit the study too well."""
    budget: "RunBudget | None"
    """Of a pilot run; None for that of the study's runs."""

    def settings(self) -> Iterator[Setting]:
        """Each combination of values."""
        for values in product(*self.grid.values()):
            yield tuple(zip(self.grid, values, strict=True))

    def pilot(self, variant: str, setting: Setting) -> str:
        """The name of a variant with a setting: `critic=none,lr=0.0001`, or `variant=grpo,lr=0.0001`."""
        levels = cell_levels(variant) or {"variant": variant}
        leaves = [key.rpartition(".")[2] for key in self.grid]
        short = len({*leaves, *levels}) == len(leaves) + len(levels)
        keys = leaves if short else list(self.grid)
        return cell_name(levels | {key: shown(value) for key, (_, value) in zip(keys, setting, strict=True)})


def shown(value: Any) -> str:
    """A value in a name: a number in its shortest form."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def nested(setting: Setting) -> dict[str, Any]:
    """Settings of dotted keys as a config file holds them."""
    config: dict[str, Any] = {}
    for key, value in setting:
        *path, leaf = key.split(".")
        inside = config
        for name in path:
            inside = inside.setdefault(name, {})
        inside[leaf] = value
    return config


def grid_of(value: Any, where: str) -> dict[str, list[Any]]:
    """Dotted key -> two numbers or more that are tried."""
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where}: expected settings with the values to try, and seeds, {EXAMPLE}")
    return {str(key): numbers(values, f"{where}.{key}") for key, values in value.items()}


def numbers(values: Any, where: str) -> list[Any]:
    """Different numbers; YAML takes `3e-5` for a text."""
    if not isinstance(values, list) or len(values) < 2:
        raise ConfigError(f"{where}: expected two numbers or more to try, got {shortened(values)}")
    found = []
    for value in values:
        try:
            number = float(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"{where}: expected numbers, got {shortened(value)}")
        found.append(number)
    if len(set(map(shown, found))) < len(found):
        raise ConfigError(f"{where}: expected different numbers, got {shortened(values)}")
    return found
