"""A study, as its YAML file describes it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from grpo_pl.commands.ablate.pilots import Setting, Tuning, grid_of, nested
from grpo_pl.commands.ablate.variants import Part, named_variants, parts_of, variants_of
from grpo_pl.commands.compare.cells import cell_levels
from grpo_pl.commands.compare.runs import ACCURACY
from grpo_pl.commands.prepare import Step, read_recipe
from grpo_pl.config.files import read_config, reason, shortened
from grpo_pl.runs.layout import CONFIG_FILE, study_place
from grpo_pl.system.refusal import ConfigError, nearest

KEYS = (
    "prepare",
    "base",
    "design",
    "variants",
    "factors",
    "seeds",
    "budget",
    "metric",
    "margin",
    "tune",
    "detect",
    "sequential",
)
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
    tuning: Tuning | None = None
    detect: tuple[float, ...] = ()
    """Differences whose need of seeds a dry run tells."""
    looks: tuple[int, ...] = ()
    """Of a sequential study: after how many seeds it may end; the last are all."""
    prepare: Sequence[Step] = ()
    """Commands whose products the configs name, such as pretrained models."""

    @property
    def factors(self) -> dict[str, list[str]]:
        """Factor -> its levels, the base first; empty for a study of another design."""
        cells = [cell_levels(name) for name in self.variants]
        return {f: list(dict.fromkeys(cell[f] for cell in cells)) for f in cells[0]} if all(cells) else {}

    @property
    def comparisons(self) -> int:
        """The number of main effects, or of variants to compare with the base."""
        main = sum(len(levels) - 1 for levels in self.factors.values())
        return max(main or len(self.variants) - 1, 1)

    def pilots(self) -> "Study":
        """The study of what is tried for each variant; without a `tune` it has no variants."""
        if self.tuning is None:
            return replace(self, variants={})
        variants = {
            self.tuning.pilot(name, setting): [*parts, nested(setting)]
            for name, parts in self.variants.items()
            for setting in self.tuning.settings()
        }
        budget = self.tuning.budget or self.budget
        return replace(self, variants=variants, seeds=self.tuning.seeds, budget=budget)

    def tuned(self, chosen: Mapping[str, Setting]) -> "Study":
        """The study with these settings laid over its variants."""
        laid = {n: [*p, nested(chosen[n])] if n in chosen else p for n, p in self.variants.items()}
        return replace(self, variants=laid)

    def part(self, seeds: str | None, variants: str | None) -> "Study":
        """The study with these seeds, which may be new ones, and these of its variants, both in YAML.

        A variant of a factorial study goes by its name or by some of its levels: `critic=none`.
        """
        part = self
        if self.looks and (seeds is not None or variants is not None):
            raise ConfigError(
                f"ablate: --{'variants' if seeds is None else 'seeds'}: a sequential study runs whole, for "
                "its rule counts seeds and comparisons: leave it out, or leave sequential out of the study"
            )
        if seeds is not None:
            part = replace(part, seeds=seeds_of(option("--seeds", seeds), "ablate: --seeds"))
        if variants is not None:
            chosen = named_variants(option("--variants", variants), list(self.variants))
            part = replace(part, variants={name: self.variants[name] for name in chosen})
        check_seeds(part)
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
    study = Study(
        path,
        {name: base + parts for name, parts in variants_of(content, where, path.parent).items()},
        seeds_of(content.get("seeds", [0]), f"{where}: seeds"),
        budget_of(content.get("budget"), where),
        str(content.get("metric", ACCURACY)),
        number_of(content.get("margin"), f"{where}: margin"),
        tuning_of(content.get("tune"), f"{where}: tune"),
        detect_of(content.get("detect"), f"{where}: detect"),
        looks_of(content.get("sequential"), f"{where}: sequential"),
        list(steps_of(content.get("prepare"), f"{where}: prepare", path.parent)),
    )
    if study.looks and study.looks[-1] != len(study.seeds):
        raise ConfigError(
            f"{where}: sequential.looks: the last one is to be the number of seeds, {len(study.seeds)}"
        )
    check_seeds(study)
    return study


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


def tuning_of(value: Any, where: str) -> Tuning | None:
    """The settings to try, with seeds and a budget of their own."""
    if value is None:
        return None
    own = dict(value) if isinstance(value, Mapping) else {}
    seeds, budget = own.pop("seeds", None), {unit: own.pop(unit) for unit in UNITS if unit in own}
    grid = grid_of(own, where)
    return Tuning(grid, seeds_of(seeds, f"{where}.seeds"), budget_of(budget or None, where))


def detect_of(value: Any, where: str) -> tuple[float, ...]:
    """One difference, or several."""
    values = value if isinstance(value, list) else [value]
    return tuple(number for each in values if (number := number_of(each, where)) is not None)


def looks_of(value: Any, where: str) -> tuple[int, ...]:
    """Numbers of seeds that grow, the first at least 2."""
    if value is None:
        return ()
    looks = value.get("looks") if isinstance(value, Mapping) and set(value) == {"looks"} else None
    whole = isinstance(looks, list) and all(type(look) is int and look > 1 for look in looks)
    if not looks or not whole or sorted(set(looks)) != looks:
        raise ConfigError(
            f"{where}: expected numbers of seeds that grow, from 2 on, as in {{looks: [5, 10, 20]}}, "
            f"got {shortened(value)}"
        )
    return tuple(looks)


def check_seeds(study: Study) -> None:
    """Refuse a study whose pilot runs have seeds of the study itself."""
    if study.tuning and (both := sorted({*study.seeds} & {*study.tuning.seeds})):
        raise ConfigError(
            f"study {study.path}: tune.seeds: {both[0]} is a seed of the study too: name others, or what "
            "suits it would look better than it is"
        )


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
