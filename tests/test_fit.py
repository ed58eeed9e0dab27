"""Contracts of the assembled system, on a tiny model with the in-process engine."""

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION, column, rows, saved, untimed

from grpo_pl.__main__ import main
from grpo_pl.module import PolicyOptimization
from grpo_pl.types import Experience, TokenScores

CONFIG = ROOT / "configs" / "tiny.yaml"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return saved(folder)["state_dict"]


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def plain(fit: Fit) -> Path:
    """The three iterations of configs/tiny.yaml, without validation."""
    return fit(*NO_VALIDATION)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_has_not_moved_is_exactly_on_policy(fit: Fit, precision: str) -> None:
    """Also in the second minibatch, whose old log-probabilities are from a pass of their own."""
    folder = fit("--model.optimizer.lr", "0.0", "--trainer.precision", precision, *NO_VALIDATION)
    assert column(folder, "train/ratio_deviation") == [0.0, 0.0, 0.0]
    assert column(folder, "train/clip_fraction") == [0.0, 0.0, 0.0]
    assert column(folder, "train/kl")[0] == 0.0


@pytest.mark.parametrize(
    ("minibatches", "without", "with_", "precision"), [(1, 2, 4, "32-true"), (2, 6, 8, "bf16-mixed")]
)
def test_the_first_step_gives_its_own_old_logprobs_and_they_are_the_same(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, minibatches: int, without: int, with_: int, precision: str
) -> None:
    """A mask that keeps every token by its entropy changes nothing but that all is scored before."""
    passes = 0
    forward = PolicyOptimization.forward

    def counted(self: PolicyOptimization, batch: Experience) -> TokenScores:
        nonlocal passes
        passes += 1
        return forward(self, batch)

    monkeypatch.setattr(PolicyOptimization, "forward", counted)
    results = []
    everything = ("--model.masks", '[{"class_path": "TopEntropy", "init_args": {"share": 1.0}}]')
    for arguments, expected in (((), without), (everything, with_)):
        passes = 0
        folder = fit(
            *("--data.minibatches", minibatches, "--trainer.precision", precision, "--trainer.max_epochs", 1),
            *(*arguments, *NO_VALIDATION),
        )
        assert passes == expected, "micro-batches that the policy reads in an iteration"
        results.append((weights(folder), rows(folder)[1]["sync/logprob_mismatch"]))
    (ours, our_gap), (theirs, their_gap) = results
    assert difference(ours, theirs) == 0
    assert our_gap == their_gap


def test_later_minibatches_are_off_policy_and_the_clip_acts(fit: Fit) -> None:
    folder = fit("--data.update_epochs", "4", "--model.optimizer.lr", "0.01", *NO_VALIDATION)
    assert min(column(folder, "train/ratio_deviation")) > 0.01
    assert max(column(folder, "train/clip_fraction")) > 0.01


def test_a_rollout_is_sampled_after_the_last_update(fit: Fit) -> None:
    folder = fit("--data.update_epochs", "2", *NO_VALIDATION)
    assert column(folder, "rollout/policy_version") == [0, 4, 8]
    assert column(folder, "optimizer_steps") == [4, 8, 12]
    assert max(column(folder, "sync/logprob_mismatch")) < 1e-5


def test_cutting_a_batch_into_micro_batches_changes_nothing(fit: Fit) -> None:
    whole = fit("--trainer.accumulate_grad_batches", "1", *NO_VALIDATION)
    cut = fit("--trainer.accumulate_grad_batches", "4", *NO_VALIDATION)
    assert difference(weights(whole), weights(cut)) < 1e-5
    for a, b in zip(rows(whole)[1:], rows(cut)[1:], strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-5)
        assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-4)
        ours, theirs = (row["train/effective_sample_size"] for row in (a, b))
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert ours < 1


def test_a_resumed_run_ends_like_one_never_stopped(fit: Fit) -> None:
    critic = ("--config", str(CONFIG.parent / "ppo.yaml"), "--gradient_terms.every", "3")
    whole = fit("--trainer.max_epochs", "4", "--checkpoint.every_n_epochs", "2", *critic)
    half = fit("--trainer.max_epochs", "2", *critic)
    again = fit("--trainer.max_epochs", "4", "--ckpt_path", "last", *critic, root=half)
    assert again == half
    assert difference(weights(whole), weights(half)) == 0
    assert untimed(whole) == untimed(half)
    assert (whole / "samples.jsonl").read_text() == (half / "samples.jsonl").read_text()


def test_ckpt_path_last_starts_fresh_where_there_is_none(fit: Fit) -> None:
    once = ("--trainer.max_epochs", "1", *NO_VALIDATION)
    assert column(fit("--ckpt_path", "last", *once), "iteration") == [0, 1]


def test_the_same_command_gives_the_same_run_and_another_seed_another(plain: Path, fit: Fit) -> None:
    second, other = fit(*NO_VALIDATION), fit("--data.seed", "1", "--trainer.max_epochs", "1", *NO_VALIDATION)
    assert untimed(plain) == untimed(second)
    first = (plain / "samples.jsonl").read_text()
    assert first == (second / "samples.jsonl").read_text()
    assert not first.startswith((other / "samples.jsonl").read_text())


def test_validating_more_often_does_not_change_the_training(plain: Path, validated: Path) -> None:
    assert difference(weights(validated), weights(plain)) == 0


@pytest.fixture(scope="module")
def validated(fit: Fit) -> Path:
    """The same with validation, greedy and sampled."""
    return fit("--data.val_samples", "4")


def test_validate_gives_the_number_of_the_run(validated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = validated
    capsys.readouterr()
    main(
        [
            "validate",
            "--config",
            str(folder / "config.yaml"),
            "--ckpt_path",
            str(folder / "checkpoints/last.ckpt"),
        ]
    )
    printed = capsys.readouterr().out
    last = rows(folder)[-1]
    for name in ("val/response_tokens", "val/accuracy_pass@4", "val_sampled/response_tokens"):
        assert name in printed
        assert f"{last[name]:.6g}"[:8] in printed


def test_a_reward_that_can_be_learned_is_learned(fit: Fit) -> None:
    folder = fit(
        "--trainer.max_epochs",
        "12",
        "--model.optimizer.lr",
        "0.003",
        "--data.group_size",
        "8",
        *NO_VALIDATION,
    )
    reward = column(folder, "rollout/reward")
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.3


def test_the_frozen_reference_is_in_no_checkpoint(plain: Path) -> None:
    names = weights(plain)
    assert names
    assert all(name.startswith("policy.") for name in names)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_are_refused(fit: Fit, refused: Refused, precision: str) -> None:
    assert "bf16-mixed" in refused(fit, "--trainer.precision", precision)


VLLM = (
    *("--data.engine", "VLLMEngine", "--data.engine.dtype", "float32"),
    *("--data.engine.kv_cache_gib", "0.1", *NO_VALIDATION),
)


@pytest.mark.vllm
def test_with_learning_rate_0_the_mismatch_stays_flat_over_8_iterations(fit: Fit) -> None:
    folder = fit("--trainer.max_epochs", "8", "--model.optimizer.lr", "0.0", *VLLM)
    mismatch = column(folder, "sync/logprob_mismatch")
    assert len(mismatch) == 8
    assert max(mismatch) < 1e-5
    assert max(mismatch[4:]) < 2 * max(mismatch[:4])


@pytest.mark.vllm
def test_while_learning_vllm_keeps_up_with_the_trainer(fit: Fit) -> None:
    folder = fit("--trainer.max_epochs", "5", "--model.optimizer.lr", "0.01", *VLLM)
    assert max(column(folder, "sync/logprob_mismatch")) < 1e-5
    assert column(folder, "train/kl")[-1] > 0.1, "the weights have moved too little to show a stale engine"


def test_tensorboard_is_one_line(fit: Fit) -> None:
    folder = fit("--trainer.logger", "true", "--trainer.max_epochs", "1", *NO_VALIDATION)
    assert list(folder.rglob("events.out.tfevents*"))
    assert (folder / "config.yaml").exists()


def test_shared_prompts_give_the_same_run(fit: Fit) -> None:
    together = ("--data.keep_groups", "true", "--trainer.max_epochs", "1", *NO_VALIDATION)
    plain = fit("--model.policy.attention", "sdpa", "--model.reference.attention", "sdpa", *together)
    shared = fit(*together)
    for name in ("train/loss", "train/grad_norm", "train/entropy", "rollout/reward"):
        assert rows(plain)[1][name] == pytest.approx(rows(shared)[1][name], rel=1e-3, abs=1e-5), name
    assert rows(shared)[1]["sync/logprob_mismatch"] < 1e-5


def test_leaving_out_sequences_without_advantage_changes_no_gradient(fit: Fit) -> None:
    """With a KL of weight 0 every sequence is read; without a KL those of silent groups are not."""
    all_read = fit("--model.kl.coefficient", "0.0", "--trainer.max_epochs", "2", *NO_VALIDATION)
    some_read = fit("--model.kl", "null", "--trainer.max_epochs", "2", *NO_VALIDATION)
    assert rows(some_read)[1]["rollout/groups_without_signal"] > 0
    for name in ("train/grad_norm", "rollout/reward"):
        assert rows(all_read)[1][name] == pytest.approx(rows(some_read)[1][name], rel=1e-4), name
    assert rows(some_read)[1]["sync/logprob_mismatch"] < 1e-5


def test_an_iteration_without_any_signal_is_survived(fit: Fit) -> None:
    folder = fit(
        *("--model.rewards.digit", "LengthPenalty", "--model.rewards.digit.max_tokens", "1"),
        *("--model.kl", "null", "--trainer.max_epochs", "2", *NO_VALIDATION),
    )
    assert column(folder, "rollout/groups_without_signal") == [1.0, 1.0]
    assert column(folder, "train/grad_norm") == [0.0, 0.0]


GSM8K = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. "
    "How much did she earn?",
]


def test_word_problems_run_through_the_same_loop(fit: Fit, tmp_path: Path) -> None:
    answers = ["48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72", "0.2 x 50 = 10\n#### 10"]
    rows_ = [{"question": q, "answer": a} for q, a in zip(GSM8K, answers, strict=True)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_ * 4))
    folder = fit(
        *("--config", str(CONFIG.parent / "task" / "gsm8k.yaml"), "--data.max_prompt_tokens", "230"),
        *("--data.train.path", str(tmp_path / "train.jsonl"), "--data.train.rows", "0:6"),
        *("--data.val.path", str(tmp_path / "train.jsonl"), "--data.val.rows", "6:8"),
    )
    assert column(folder, "rewards/correct") == [0.0, 0.0, 0.0]
    assert "val/accuracy" in rows(folder)[0]
