"""Reads run folders."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from grpo_pl.runs.layout import (
    CONFIG_FILE,
    ENDED_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    TOKENS_GENERATED,
    VERDICTS_FILE,
    StudyPlace,
    read_metrics,
    study_place,
    tokens_generated,
)
from grpo_pl.system.refusal import ConfigError

if TYPE_CHECKING:
    from grpo_pl.runs.verdicts import ProblemVerdicts

Paths = Iterable[str | Path] | str | Path
"""Run folders, folders that hold `seed-<n>`, or folders of studies."""
ACCURACY = "val/accuracy"
"""The metric that runs are compared by."""
TOKENS, SECONDS, VALIDATION = TOKENS_GENERATED, "time/iteration_s", "time/validate_s"


@dataclass(frozen=True)
class Run:
    """A run, read from its folder."""

    folder: Path
    config: dict[str, Any] = field(repr=False)
    """Empty for a run that never started."""
    rows: list[dict[str, float]] = field(repr=False)
    """The rows of `metrics.csv`, one an iteration; row 0 is the validation before training."""
    place: StudyPlace | None

    @property
    def seed(self) -> str:
        """Pairs it with runs of other groups: `seed_everything`, and `data.seed` where that differs."""
        if not self.config:
            return self.place.seed if self.place else "-"
        seeds = [self.config.get("seed_everything"), (self.config.get("data") or {}).get("seed")]
        return "/".join(dict.fromkeys(str(seed) for seed in seeds if seed is not None)) or "-"

    @cached_property
    def problem(self) -> str:
        """Why its last row is not the final result of its config; empty where it is."""
        if not self.config:
            return f"has no {CONFIG_FILE}: it never started"
        if not self.rows:
            return f"has no {METRICS_FILE}: it ended before its first validation did"
        if (self.folder / ENDED_FILE).exists():
            return ""
        trainer, budget = self.config["trainer"], self.config.get("budget") or {}
        iterations, steps = trainer.get("max_epochs"), trainer.get("max_steps")
        last = self.rows[-1]
        done = int(last["iteration"])
        if any(budget.values()):
            return f"ended after iteration {done}, before its budget was spent"
        limited = (iterations or -1) > 0 and not trainer.get("max_time")
        if not limited or done >= iterations or 0 < (steps or -1) <= last.get("optimizer_steps", 0):
            return ""
        return f"ended after iteration {done} of {iterations}"

    @property
    def finished(self) -> bool:
        """Whether it has reached the end that its config names."""
        return not self.problem

    def measured(self, metric: str) -> list[float]:
        """The values of a metric, in all iterations that have it."""
        return [row[metric] for row in self.rows if metric in row]

    def last(self, metric: str) -> float | None:
        """The last value of a metric."""
        values = self.measured(metric)
        return values[-1] if values else None

    @cached_property
    def verdicts(self) -> "dict[int, dict[str, ProblemVerdicts]]":
        """Iteration -> name -> verdicts on each problem; empty for a run older than `verdicts.jsonl`."""
        from grpo_pl.runs.verdicts import read_verdicts  # numpy, which `compare --help` need not wait for

        try:
            return read_verdicts(self.folder / VERDICTS_FILE)
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"compare: {self.folder / VERDICTS_FILE} is not a file that `fit` wrote"
            ) from None

    def samples(self) -> list[dict[str, Any]]:
        """The records of `samples.jsonl`, without a line torn by a kill."""
        path = self.folder / SAMPLES_FILE
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


def read_run(folder: Path) -> Run:
    """Read a run's folder, and refuse one whose files are not those of `fit`."""
    config, metrics = folder / CONFIG_FILE, folder / METRICS_FILE
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    except (UnicodeDecodeError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict) or (settings and not isinstance(settings.get("trainer"), dict)):
        raise ConfigError(f"compare: {config} is not a config of `fit`")
    try:
        rows = read_metrics(metrics) if metrics.exists() else []
    except (UnicodeDecodeError, ValueError):
        rows = [{}]
    if any("iteration" not in row for row in rows):
        raise ConfigError(f"compare: {metrics} is not a table that `fit` wrote")
    for row in rows:  # of a run older than the column
        if "rollout/tokens" in row:
            row[TOKENS] = tokens_generated(row)
    return Run(folder, settings, rows, study_place(folder))


def find_folders(path: Path) -> list[Path]:
    """The run folders at a path: itself, or those of its variant or study; a path without any is refused."""
    if not path.is_dir():
        raise ConfigError(f"compare: there is no folder {path}")
    if any((path / file).exists() for file in (CONFIG_FILE, METRICS_FILE)) or study_place(path):
        return [path]
    inside = [(where, f) for f in (*path.glob("seed-*"), *path.glob("*/seed-*")) if (where := study_place(f))]
    if not inside:
        raise ConfigError(
            f"compare: {path} holds no run: expected {CONFIG_FILE} and {METRICS_FILE}, as `fit` writes them, "
            "or folders <variant>/seed-<n> with them"
        )
    return [folder for _, folder in sorted(inside, key=lambda pair: (pair[0].variant, int(pair[0].seed)))]


def read_runs(paths: Paths) -> list[Run]:
    """Read all runs at the paths, each once; a path without runs, or an unreadable file, is refused."""
    each = [paths] if isinstance(paths, str | Path) else paths
    folders = {folder.resolve(): folder for path in each for folder in find_folders(Path(path))}
    runs = [read_run(folder) for folder in folders.values()]
    for run in runs:
        if not run.config and (run.rows or not run.place):
            raise ConfigError(f"compare: {run.folder} has no {CONFIG_FILE}, so that nothing says what it is")
    return runs
