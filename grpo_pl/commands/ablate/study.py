"""A study, as its YAML file describes it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from grpo_pl.commands.compare.runs import ACCURACY
from grpo_pl.config.by_name import own_config
from grpo_pl.config.files import read_config, shortened
from grpo_pl.system.refusal import ConfigError, nearest

Part = Path | dict[str, Any]
"""A config file, or settings that stand in the study itself."""
KEYS = "base", "variants", "seeds", "budget", "metric"
UNITS = {"iterations": int, "response_tokens": int, "seconds": float}
"""What a budget may be counted in."""
SETTINGS_FOLDER = "settings"
EXAMPLE = "for instance `variants: {grpo: {}, no_kl: {model: {kl: null}}}`"


class RunBudget(NamedTuple):
    """What each run may spend."""

    unit: str
    amount: float

    @property
    def options(self) -> list[str]:
        """The options of `fit` that keep to it."""
        if self.unit == "iterations":
            return ["--trainer.max_epochs", str(self.amount)]
        return ["--trainer.max_epochs", "-1", f"--budget.{self.unit}", str(self.amount)]


@dataclass(frozen=True)
class Study:
    """Variants of a base, each with several seeds.

    A seed gives every variant the same prompts in the same order and the same initial weights.
    """

    path: Path
    variants: dict[str, list[Part]]
    """Name -> what is laid over each other, the base first; the others are compared with the first one."""
    seeds: list[int]
    budget: RunBudget | None
    """None leaves it to the configs."""
    metric: str

    def write_settings(self, folder: Path) -> dict[str, list[str]]:
        """Write what stands in the study itself into files that `fit` reads; variant -> its options.

        Raises:
            ConfigError: If a file that the study names is no config.
        """
        return {name: list(self._options(name, parts, folder)) for name, parts in self.variants.items()}

    def imports(self, options: Sequence[str]) -> list[str]:
        """Modules that its runs may use, and that not all runs do.

        Args:
            options: Of `fit`, for all runs.
        """
        parts = [part for parts in self.variants.values() for part in parts]
        said = [part.read_text(errors="replace") if isinstance(part, Path) else str(part) for part in parts]
        return ["vllm.entrypoints.llm"] if "VLLMEngine" in " ".join((*said, *options)) else []

    def _options(self, name: str, parts: Sequence[Part], folder: Path) -> list[str]:
        said: list[str] = []
        for i, part in enumerate(parts):
            path = part if isinstance(part, Path) else folder / f"{name}.{i}.yaml"
            if isinstance(part, dict) and part:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(yaml.safe_dump(part, sort_keys=False), encoding="utf-8")
            if part:
                said += ["--config", str(path)]
        return said + (self.budget.options if self.budget else [])


def read_study(path: Path) -> Study:
    """Read a study's file; paths in it are relative to it, or names of configs that come with grpo_pl.

    Raises:
        ConfigError: In one sentence with the file and the key.
    """
    try:
        said = read_config(str(path))
    except FileNotFoundError:
        raise ConfigError(f"ablate: there is no study {path}") from None
    where = f"study {path}"
    for key in said:
        if key not in KEYS:
            raise ConfigError(f"{where}: there is no {key}{nearest(key, KEYS)} It has {', '.join(KEYS)}")
    base = parts_of(said.get("base"), f"{where}: base", path.parent)
    if not base:
        raise ConfigError(f"{where}: base: expected a config file, which all variants begin with")
    variants = said.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise ConfigError(f"{where}: variants: expected a name and its settings for each, {EXAMPLE}")
    for name in variants:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ConfigError(f"{where}: variants: {name!r} is to name a folder: use letters, digits, _ - +")
    return Study(
        path,
        {name: base + parts_of(v, f"{where}: variants.{name}", path.parent) for name, v in variants.items()},
        seeds_of(said.get("seeds", [0]), where),
        budget_of(said.get("budget"), where),
        str(said.get("metric", ACCURACY)),
    )


def parts_of(said: Any, where: str, folder: Path) -> list[Part]:
    """A config file, settings, or a list of both."""
    if said is None:
        return []
    if isinstance(said, list):
        return [part for one in said for part in parts_of(one, where, folder)]
    if isinstance(said, dict):
        return [said]
    if not isinstance(said, str):
        raise ConfigError(
            f"{where}: expected a config file, settings, or a list of both, got {shortened(said)}"
        )
    path = folder / said
    if not path.is_file():
        path = own_config(said) or path
    if not path.is_file():
        raise ConfigError(f"{where}: there is no file {path}")
    return [path]


def seeds_of(said: Any, where: str) -> list[int]:
    """Different whole numbers; `3` means 1, 2 and 3."""
    if isinstance(said, int) and not isinstance(said, bool) and said > 0:
        return list(range(1, said + 1))
    seeds = said if isinstance(said, list) else []
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{where}: seeds: expected different whole numbers such as [1, 2, 3], or how many, "
            f"got {shortened(said)}"
        )
    return seeds


def budget_of(said: Any, where: str) -> RunBudget | None:
    """One limit in one unit."""
    if said is None:
        return None
    if not isinstance(said, Mapping) or len(said) != 1 or (unit := next(iter(said))) not in UNITS:
        raise ConfigError(f"{where}: budget: expected one of {', '.join(UNITS)}, as in {{iterations: 10}}")
    amount = said[unit]
    kinds = (int, float) if UNITS[unit] is float else int
    if isinstance(amount, bool) or not isinstance(amount, kinds) or not amount > 0:
        raise ConfigError(f"{where}: budget.{unit}: expected a number above 0, got {shortened(amount)}")
    return RunBudget(unit, amount)
