"""Arguments of runs that several tests share, and what a run leaves behind: numbers and weights."""

import json
from pathlib import Path
from typing import Any

import torch
from helpers.repository import ROOT

from grpo_pl.runs.layout import read_metrics

STRATEGIES = ROOT / "configs" / "strategy"
NO_VALIDATION = ("--trainer.limit_val_batches", "0")


def strategy(name: str) -> tuple[str, str]:
    """The arguments that lay a strategy of configs/ over a run."""
    return "--config", str(STRATEGIES / f"{name}.yaml")


def callback(name: str, **arguments: object) -> tuple[str, str]:
    """The arguments that add a callback to a run."""
    return "--trainer.callbacks", json.dumps([{"class_path": name, "init_args": arguments}])


def rows(folder: Path) -> list[dict[str, float]]:
    """The metrics of each iteration."""
    return read_metrics(folder / "metrics.csv")


def column(folder: Path, name: str) -> list[float]:
    """One metric in all iterations that have it."""
    return [row[name] for row in rows(folder) if name in row]


def untimed(folder: Path) -> list[dict[str, float]]:
    """The metrics that are the same whenever and wherever a run is repeated."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows(folder)]


def saved(folder: Path, file: str = "last.ckpt") -> dict[str, Any]:
    """A checkpoint."""
    return torch.load(folder / "checkpoints" / file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Whether two parts of checkpoints agree to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)
