"""Run folders with results that are made up, in files as `fit` writes them."""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from grpo_pl.functional import wilson_interval
from grpo_pl.runs.layout import VERDICTS_FILE, write_metrics
from grpo_pl.runs.verdicts import ProblemVerdicts, append_verdicts

PROBLEMS = 200


def write_run(
    folder: Path,
    config: Mapping[str, Any],
    *,
    seed: int = 1,
    accuracies: Iterable[float] = (0.25, 0.5),
    changes: Mapping[str, Any] | None = None,
    planned: int | None = None,
    cost: float = 1.0,
    models: int = 1,
    problems: int = PROBLEMS,
) -> Path:
    """A run whose validations gave these accuracies, with a real config in which some keys are changed."""
    accuracies = list(accuracies)
    settings = copy.deepcopy(dict(config))
    settings |= {"seed_everything": seed}
    settings["data"]["seed"] = seed
    settings["trainer"] |= {"default_root_dir": str(folder), "max_epochs": planned or len(accuracies) - 1}
    settings["checkpoint"]["dirpath"] = str(folder / "checkpoints")
    for key, value in (changes or {}).items():
        *path, leaf = key.split(".")
        owner = settings
        for name in path:
            owner = owner[name]
        owner[leaf] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    noise = np.random.default_rng([seed, int(cost * 100)])
    rows = [row(i, a, cost, models, problems, noise) for i, a in enumerate(accuracies)]
    write_metrics(folder / "metrics.csv", rows)
    return folder


def row(
    i: int, accuracy: float, cost: float, models: int, problems: int, noise: np.random.Generator
) -> dict[str, float]:
    solved = round(accuracy * problems)
    low, high = wilson_interval(float(solved), problems)
    found = {"iteration": float(i), "val/accuracy": solved / problems, "time/validate_s": 3.0}
    found |= {"val/accuracy_low": low, "val/accuracy_high": high}
    if i == 0:
        return found
    parts = {"sync": 0.3, "generate": 5.0, "score": 2.0 * models, "update": 9.0 * cost}
    stages = {f"time/{k}_s": v * float(noise.uniform(0.9, 1.1)) for k, v in parts.items()}
    seconds = sum(stages.values())
    tokens = float(noise.integers(2200, 2600))
    return found | stages | {
        "time/iteration_s": seconds,
        "time/tokens_per_s": tokens / seconds,
        "rollout/tokens": tokens,
        "rollout/reward": accuracy * 0.9 + float(noise.normal(0, 0.02)),
        "rollout/response_tokens": 12 - 0.3 * i + float(noise.normal(0, 0.3)),
        "rollout/truncated": 0.1,
        "rollout/groups_without_signal": min(0.05 * i, 1.0),
        "train/kl": 0.002 * i * cost,
        "train/entropy": 1.5 - 0.08 * i + float(noise.normal(0, 0.03)),
        "train/clip_fraction": 0.01 + float(noise.uniform(0, 0.02)),
        "train/clip_fraction_positive": 0.004,
        "train/effective_sample_size": 1 / (1 + 0.01 * cost),
        "train/padding": 0.3 - 0.02 * models,
        "train/grad_norm": 1 + float(noise.uniform(0, 0.4)),
        "memory/models": float(models),
        "memory/parameters": 134.5e6 * models,
        "memory/peak_gib": 4.2 + 1.7 * models * cost**0.2,
        "optimizer_steps": 3.0 * i,
    }  # fmt: skip


def write_samples(folder: Path, responses: Mapping[str, str], iteration: int = 1) -> None:
    """Prompt -> response, of one iteration."""
    records = [
        {"iteration": iteration, "prompt": prompt, "answer": "42", "response": response, "response_tokens": 3}
        | {"truncated": False, "rewards": {"correct": 1.0}, "reward": 1.0, "advantage": 0.5}
        for prompt, response in responses.items()
    ]
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def write_verdicts(
    folder: Path, verdicts: Iterable[Iterable[Iterable[int]]], name: str = "val/accuracy", salt: str = ""
) -> None:
    """The verdicts of each validation from iteration 0 on: problem -> samples."""
    for iteration, solved in enumerate(verdicts):
        bits = np.array(solved, dtype=bool)
        problems = tuple(f"{row}:{salt}" for row in range(len(bits)))
        append_verdicts(folder / VERDICTS_FILE, iteration, [ProblemVerdicts(name, problems, bits)])
