"""A study, as its YAML file describes it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from grpo_pl.commands.ablate.variants import Part, named_variants, parts_of, variants_of
from grpo_pl.commands.compare.runs import ACCURACY
from grpo_pl.commands.prepare import Step, read_recipe
from grpo_pl.config.files import read_config, reason, shortened
from grpo_pl.runs.layout import CONFIG_FILE, study_place
from grpo_pl.system.refusal import ConfigError, nearest

KEYS = "prepare", "base", "design", "variants", "factors", "seeds", "budget", "metric", "margin"
UNITS = {"iterations": int, "response_tokens": int, "seconds": float}
"""The units of a budget."""
SETTINGS_FOLDER = "settings"


class RunBudget(NamedTuple):
    """The limit of each run."""

    unit: str
    amount: float

    @property
    def options(self) -> list[str]:
        """The options of `fit` that set this budget."""
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
    """Name -> its configs, later ones over earlier ones, the base first; the first variant is the base of
    comparisons."""
    seeds: list[int]
    budget: RunBudget | None
    """None leaves it to the configs."""
    metric: str
    margin: float | None = None
    """The largest difference of the metric that does not matter; None declares none."""
    prepare: Sequence[Step] = ()
    """Commands whose products the configs name, such as pretrained models."""

    def part(self, seeds: str | None, variants: str | None) -> "Study":
        """The study with these seeds, which may be new ones, and these of its variants, both in YAML.

        A variant of a factorial study goes by its name or by some of its levels: `critic=none`.
        """
        part = self
        if seeds is not None:
            part = replace(part, seeds=seeds_of(option("--seeds", seeds), "ablate: --seeds"))
        if variants is not None:
            chosen = named_variants(option("--variants", variants), list(self.variants))
            part = replace(part, variants={name: self.variants[name] for name in chosen})
        return part

    def begun(self, out: Path) -> list[Path]:
        """The folders of all runs of its variants that have begun, with whatever seed."""
        folders = [folder for name in self.variants for folder in (out / name).glob("seed-*")]
        places = {f: place for f in folders if (f / CONFIG_FILE).exists() and (place := study_place(f))}
        names = list(self.variants)
        return sorted(places, key=lambda f: (names.index(places[f].variant), int(places[f].seed)))

    def write_settings(self, folder: Path) -> dict[str, list[str]]:
        """Write the settings inside the study into files that `fit` reads; returns variant -> its options."""
        return {name: list(self._options(name, parts, folder)) for name, parts in self.variants.items()}

    def imports(self, options: Sequence[str]) -> list[str]:
        """Modules that only some studies need, by their configs and the options for all of their runs."""
        parts = [part for parts in self.variants.values() for part in parts]
        texts = [part.read_text(errors="replace") if isinstance(part, Path) else str(part) for part in parts]
        return ["vllm.entrypoints.llm"] if "VLLMEngine" in " ".join((*texts, *options)) else []

    def _options(self, name: str, parts: Sequence[Part], folder: Path) -> list[str]:
        options: list[str] = []
        for i, part in enumerate(parts):
            path = part if isinstance(part, Path) else folder / f"{name}.{i}.yaml"
            if isinstance(part, dict) and part:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(yaml.safe_dump(part, sort_keys=False), encoding="utf-8")
            if part:
                options += ["--config", str(path)]
        return options + (self.budget.options if self.budget else [])


def read_study(path: Path) -> Study:
    """Read a study's file; paths in it are relative to it, or names of configs that come with grpo_pl."""
    try:
        content = read_config(str(path))
    except FileNotFoundError:
        raise ConfigError(f"ablate: there is no study {path}") from None
    where = f"study {path}"
    for key in content:
        if key not in KEYS:
            raise ConfigError(
                f"{where}: there is no {key}{nearest(key, KEYS) or '.'} A study has {', '.join(KEYS)}"
            )
    base = parts_of(content.get("base"), f"{where}: base", path.parent)
    if not base:
        raise ConfigError(f"{where}: base: expected a config file, which all variants begin with")
    return Study(
        path,
        {name: base + parts for name, parts in variants_of(content, where, path.parent).items()},
        seeds_of(content.get("seeds", [0]), f"{where}: seeds"),
        budget_of(content.get("budget"), where),
        str(content.get("metric", ACCURACY)),
        number_of(content.get("margin"), f"{where}: margin"),
        list(steps_of(content.get("prepare"), f"{where}: prepare", path.parent)),
    )


def steps_of(value: Any, where: str, folder: Path) -> Iterator[Step]:
    """The steps of a recipe, as a file or in the study itself, or of a list of both."""
    for part in parts_of(value, where, folder):
        yield from read_recipe(read_config(str(part)) if isinstance(part, Path) else part, where)


def seeds_of(value: Any, where: str) -> list[int]:
    """Different whole numbers; `3` means 1, 2 and 3."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return list(range(1, value + 1))
    seeds = value if isinstance(value, list) else []
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{where}: expected different whole numbers such as [1, 2, 3], or how many, "
            f"got {shortened(value)}"
        )
    return seeds


def budget_of(value: Any, where: str) -> RunBudget | None:
    """One limit in one unit."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) != 1 or (unit := next(iter(value))) not in UNITS:
        raise ConfigError(f"{where}: budget: expected one of {', '.join(UNITS)}, as in {{iterations: 10}}")
    amount = value[unit]
    kinds = (int, float) if UNITS[unit] is float else int
    if isinstance(amount, bool) or not isinstance(amount, kinds) or not amount > 0:
        raise ConfigError(f"{where}: budget.{unit}: expected a number above 0, got {shortened(amount)}")
    return RunBudget(unit, amount)


def number_of(value: Any, where: str) -> float | None:
    """A number above 0, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{where}: expected a number above 0, or null, got {shortened(value)}")
    return float(value)


def option(name: str, text: str) -> Any:
    """The value of an option of `ablate` in YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"ablate: {name}: is not YAML ({reason(error)}); quote it for the shell") from error
