"""The files of a run, and its `metrics.csv`: one row an iteration."""

import csv
from pathlib import Path

from grpo_pl.system.atomic_files import write_atomically

CONFIG_FILE, METRICS_FILE, SAMPLES_FILE = "config.yaml", "metrics.csv", "samples.jsonl"
ENDED_FILE = "ended.json"
"""In the folder of a run that has reached its end; the same command continues any other."""


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


def write_metrics(path: Path, rows: list[dict[str, float]]) -> None:
    """Write rows with the union of their columns, `iteration` first and the others in alphabetical order."""
    columns = ["iteration", *sorted({key for row in rows for key in row} - {"iteration"})]
    lines = [",".join(columns)]
    lines += [",".join(_number(row[c]) if c in row else "" for c in columns) for row in rows]
    write_atomically(path, "\n".join(lines) + "\n")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.8g}"
