"""The names in a run's folder, its place in a study, and its `metrics.csv`: one row an iteration."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from grpo_pl.system.atomic_files import PARTIAL, remove, write_atomically

CONFIG_FILE, METRICS_FILE, SAMPLES_FILE = "config.yaml", "metrics.csv", "samples.jsonl"
VERDICTS_FILE = "verdicts.jsonl"
ENDED_FILE = "ended.json"
"""Exists once the run has ended; without it the same command resumes the run."""
LOCK_FILE = ".lock"
ROLLOUTS_FOLDER = "rollouts"
PASS_RATES_FILE = "pass_rates.csv"
TOKENS_GENERATED = "rollout/tokens_generated"
"""The column of all tokens sampled in an iteration."""
LAST = "last.ckpt"
"""A link to the newest whole checkpoint of its folder."""
MANIFEST_FILE = "manifest.json"
"""Inside a sharded checkpoint; beside a single-file one, appended to its name."""


class StudyPlace(NamedTuple):
    """Where a run stands in a study: its folder is `<study>/<variant>/seed-<seed>`."""

    study: str
    variant: str
    seed: str


def study_place(folder: Path) -> StudyPlace | None:
    """The place of a folder in a study; None outside of studies."""
    folder = folder.absolute()
    seed = re.fullmatch(r"seed-(\d+)", folder.name)
    return StudyPlace(folder.parent.parent.name, folder.parent.name, seed[1]) if seed else None


def sweep(folder: Path) -> None:
    """Remove half-written files that a kill has left."""
    for partial in folder.glob(f".*{PARTIAL}"):
        remove(partial)
    for manifest in folder.glob(f"*.ckpt.{MANIFEST_FILE}"):
        if not manifest.with_name(manifest.name.removesuffix(f".{MANIFEST_FILE}")).exists():
            manifest.unlink()


def move_aside(folder: Path) -> Path:
    """Rename a folder that holds a run to the first free `<folder>.<n>`, and say where it went."""
    n = 1
    while (kept := folder.with_name(f"{folder.name}.{n}")).exists():
        n += 1
    folder.rename(kept)
    print(f"The earlier run of {folder} is kept in {kept}; --ckpt_path last would have continued it.")
    return kept


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`; a number that was not measured in an iteration is missing from its row."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]


def tokens_generated(row: Mapping[str, float]) -> float:
    """The tokens sampled in an iteration; of a run older than that column, those that it learned from."""
    return row.get(TOKENS_GENERATED, row.get("rollout/tokens", 0.0))


def write_metrics(path: Path, rows: list[dict[str, float]]) -> None:
    """Write rows with the union of their columns, `iteration` first and the others in alphabetical order."""
    columns = ["iteration", *sorted({key for row in rows for key in row} - {"iteration"})]
    lines = [",".join(columns)]
    lines += [",".join(_number(row[c]) if c in row else "" for c in columns) for row in rows]
    write_atomically(path, "\n".join(lines) + "\n")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.8g}"
