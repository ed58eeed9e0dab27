"""Supervised fine-tuning by the one loop: its loss, and that it learns; the best of n by kept rollouts."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import Fit
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION, column
from transformers import AutoModelForCausalLM

SFT = (
    *("--config", ROOT / "configs" / "sft.yaml", "--data.val_engine", "InProcessEngine"),
    *("--data.prompts_per_iteration", 8, "--data.minibatches", 1, "--trainer.accumulate_grad_batches", 1),
    *("--trainer.precision", "32-true", "--data.keep_rollouts", "true"),
)


def kept(folder: Path) -> Iterator[dict[str, object]]:
    for path in sorted((folder / "rollouts").glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_answers(
    fit: Fit, tiny_model: Path, tmp_path: Path
) -> None:
    fit(*SFT, "--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", 1, *NO_VALIDATION)
    model, total, count = AutoModelForCausalLM.from_pretrained(tiny_model), 0.0, 0
    for row in kept(tmp_path):
        prompt, answer = row["prompt_token_ids"], row["token_ids"]
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    assert count > 8
    assert column(tmp_path, "train/loss") == [pytest.approx(total / count, rel=1e-5)]


def test_it_learns_the_answers(fit: Fit, tmp_path: Path) -> None:
    longer = ("--trainer.max_epochs", 6, "--model.optimizer.lr", 0.01, *NO_VALIDATION)
    fit(*SFT, "--trainer.default_root_dir", tmp_path, *longer)
    losses = column(tmp_path, "train/loss")
    assert losses[-1] < 0.7 * losses[0]


def test_of_kept_rollouts_the_best_alone_is_learned(fit: Fit) -> None:
    sampled = fit("--data.keep_rollouts", "true", "--trainer.max_epochs", 1, *NO_VALIDATION)
    best = json.dumps({"class_path": "Imitation", "init_args": {"best": 1, "above": 0.0}})
    folder = fit(
        *("--data.engine", "ReplayEngine", "--data.engine.path", sampled / "rollouts", "--data.val", "null"),
        *("--model.advantage", best, "--model.loss", "Reinforce", "--model.kl", "null"),
        *("--trainer.max_epochs", 1, *NO_VALIDATION),
    )
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    paid = [sample for sample in samples if sample["reward"] > 0]
    learned = [sample for sample in samples if sample["advantage"]]
    assert {sample["advantage"] for sample in learned} == {1.0}
    assert all(sample["reward"] > 0 for sample in learned)
    assert len({sample["prompt"] for sample in paid}) == len(learned) < len(paid)
