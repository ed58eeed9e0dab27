"""Reward models trained by the command line, on the tiny model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers.columns import unknown_columns
from helpers.commands import Fit, Refused, Stopped, command
from helpers.repository import ROOT
from helpers.run_results import callback, rows, saved
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grpo_pl.__main__ import main
from grpo_pl.models import RewardModel
from grpo_pl.reward_modeling.data import replay_count

CONFIGS = ROOT / "configs"
Train = Callable[..., Path]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(i: int) -> dict[str, object]:
    """What a tiny model can learn to tell apart: the better response has the word."""
    return {"prompt": f"What is {i}?", "chosen": "number", "rejected": f"{i}"}


def steps(i: int) -> dict[str, object]:
    return {"prompt": f"What is {i}?", "completions": ["number\n", f"{i}"], "labels": [1, 0.0]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name, row in (("pairs", pair), ("steps", steps)):
        write(folder / f"{name}.jsonl", [row(i) for i in range(24)])
        write(folder / f"{name}.val.jsonl", [row(i) for i in range(50, 60)])
    return folder


@pytest.fixture(scope="module")
def train(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs a reward model's training in this process and returns the run's folder."""

    def run(
        kind: str,
        *arguments: object,
        root: Path | None = None,
        pretrained: Path = tiny_model,
        ranks: int = 1,
    ) -> Path:
        root = root or tmp_path_factory.mktemp("reward") / "run"
        overlay = ("--config", CONFIGS / "process_reward_model.yaml") if kind == "steps" else ()
        words = [
            *("--config", CONFIGS / "reward_model.yaml", *overlay),
            *("--pretrained", pretrained, "--trainer.default_root_dir", root),
            *("--data.train.path", data / f"{kind}.jsonl"),
            *("--data.val.path", data / f"{kind}.val.jsonl"),
            *("--trainer.accelerator", "cpu", "--trainer.devices", ranks),
            *("--trainer.precision", "32-true", "--model.optimizer.lr", "3e-3", *arguments),
        ]
        if ranks > 1:
            from helpers.rank_runs import run_ranks

            run_ranks(words, ranks, root.parent)
            return root
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            main(["fit", *map(str, words)])
        finally:
            torch.set_num_threads(threads)
        return root

    return run


@pytest.fixture(scope="module")
def runs(train: Train) -> dict[str, Path]:
    return {kind: train(kind) for kind in ("pairs", "steps")}


def test_examples_that_changed_are_refused_when_a_run_resumes(
    runs: dict[str, Path], train: Train, tmp_path: Path, refused: Refused
) -> None:
    folder = shutil.copytree(runs["pairs"], tmp_path / "run", symlinks=True)
    epochs = len(rows(folder))
    swapped = [pair(i) for i in range(23)] + [pair(23) | {"chosen": "23", "rejected": "number"}]
    other = "--data.train.path", write(tmp_path / "other.jsonl", swapped)
    onward = "--ckpt_path", "last", "--trainer.max_epochs", epochs
    assert "data.train: its examples are not those that the checkpoint was trained on: give back" in refused(
        train, "pairs", *onward, *other, root=folder
    )
    same = "--data.train.path", write(tmp_path / "same.jsonl", [pair(i) for i in range(24)])
    train("pairs", *onward, *same, root=folder)
    train("pairs", *onward, "--data.changed_examples", "warn", *other, root=folder)


@pytest.mark.parametrize("kind", ["pairs", "steps"])
def test_it_learns_what_is_better_and_says_so_on_held_out_data(kind: str, runs: dict[str, Path]) -> None:
    first, *_, last = rows(runs[kind])
    assert first["val/accuracy"] == 0.5
    assert first["val/loss"] == pytest.approx(0.6931, abs=1e-4)
    assert last["val/accuracy"] == 1.0
    assert last["val/loss"] < 0.5
    assert last["train/accuracy"] > 0.8
    assert "val/calibration_error" in last
    assert unknown_columns(runs[kind]) == set()
    assert (runs[kind] / "reliability.png").stat().st_size > 1000


def test_the_run_s_folder_has_a_checkpoint_that_transformers_reads(runs: dict[str, Path]) -> None:
    folder = runs["pairs"] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ours = RewardModel.load(str(folder), "outcome", "float32")
    assert not ours.new_head
    token_ids = ours.encode("What is 7?", "number").token_ids
    assert tokenizer.decode(token_ids) == ours.encode.tokenizer.decode(token_ids)
    with torch.no_grad():
        logit = theirs(torch.tensor([token_ids])).logits.item()
        score = ours(torch.tensor([token_ids]), torch.tensor([len(token_ids)]))[0, -1].item()
        worse = ours.encode("What is 7?", "7").token_ids
        assert score > ours(torch.tensor([worse]), torch.tensor([len(worse)]))[0, -1].item()
    assert score == pytest.approx(logit, abs=1e-5)


def paid_by(reward: str, folder: Path) -> str:
    model = {"class_path": reward, "init_args": {"pretrained": str(folder / "model")}}
    return json.dumps({"*": None, "model": model})


def test_a_policy_learns_from_the_reward_model_that_was_trained(runs: dict[str, Path], fit: Fit) -> None:
    """The pipeline offline: no rule is left, the trained model alone pays, and the policy follows it."""
    folder = fit(
        *("--model.rewards", paid_by("OutcomeRewardModel", runs["pairs"]), "--model.kl", "null"),
        *("--trainer.max_epochs", 12, "--trainer.limit_val_batches", 0, "--samples.every", 0),
        *("--data.group_size", 16, "--data.sampling.max_tokens", 1, "--model.optimizer.lr", "3e-3"),
    )
    paid = [row["rollout/reward"] for row in rows(folder)[1:]]
    assert min(paid[-3:]) > max(paid[:2])


def test_steps_are_paid_by_the_reward_model_that_was_trained(runs: dict[str, Path], fit: Fit) -> None:
    folder = fit(
        *("--model.rewards", paid_by("ProcessRewardModel", runs["steps"]), "--trainer.max_epochs", 1),
        *("--model.advantage", "ProcessGroupRelative", "--trainer.limit_val_batches", 0),
    )
    row = rows(folder)[1]
    assert row["rewards/model"] > 0
    assert row["train/grad_norm"] > 0


def test_a_critic_starts_from_the_reward_model_that_was_trained(runs: dict[str, Path], fit: Fit) -> None:
    critic = {"class_path": "ValueHead", "init_args": {"pretrained": str(runs["pairs"] / "model")}}
    folder = fit(
        *("--model.critic", json.dumps(critic), "--model.advantage", "GAE", "--trainer.max_epochs", 1),
        *("--trainer.limit_val_batches", 0),
    )
    assert rows(folder)[1]["train/critic_grad_norm"] > 0


def test_a_resumed_training_ends_like_one_never_stopped(train: Train, runs: dict[str, Path]) -> None:
    part = train("pairs", "--trainer.max_epochs", 1, "--checkpoint.every_n_epochs", 1)
    train("pairs", "--ckpt_path", "last", root=part)
    whole, again = (saved(folder)["state_dict"] for folder in (runs["pairs"], part))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_saved_config_runs_again_identically(runs: dict[str, Path], tmp_path: Path) -> None:
    config = runs["pairs"] / "config.yaml"
    assert yaml.safe_load(config.read_text())["job"] == "reward_model"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(["fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path / "again")])
    finally:
        torch.set_num_threads(threads)
    keys = ("train/loss", "val/loss", "train/grad_norm")
    for a, b in zip(
        *(rows(folder)[1:] for folder in (runs["pairs"], tmp_path / "again")),
        strict=True,
    ):
        assert [a[key] for key in keys] == [b[key] for key in keys]


def test_micro_batches_accumulate_to_the_same_step(train: Train) -> None:
    losses = [
        rows(train("pairs", "--data.batch_size", size, "--trainer.accumulate_grad_batches", k, *ONE_EPOCH))
        for size, k in ((8, 1), (2, 4))
    ]
    assert losses[0][1]["val/loss"] == pytest.approx(losses[1][1]["val/loss"], rel=1e-4)


def test_weights_that_are_not_finite_end_the_training(train: Train, tmp_path: Path, stopped: Stopped) -> None:
    poison = callback("helpers.faults.Poison", model="reward_model", iteration=1)
    sentence = stopped(train, "pairs", *poison, root=tmp_path / "run")
    assert "with the trained weights, since the step before (of 1 of " in sentence


ONE_EPOCH = ("--trainer.max_epochs", 1)


# -------------------------------------------------------------------------------------------------- its data


def test_two_ranks_measure_each_of_five_held_out_examples_once(
    train: Train, runs: dict[str, Path], tmp_path: Path
) -> None:
    five = write(tmp_path / "five.jsonl", [pair(i) for i in range(70, 75)])
    own = ("--data.val.path", five, "--data.batch_size", 2, *ONE_EPOCH)
    alone, both = (
        rows(train("pairs", *own, pretrained=runs["pairs"] / "model", ranks=ranks))[0] for ranks in (1, 2)
    )
    for name in ("val/loss", "val/accuracy", "val/calibration_error"):
        assert both[name] == pytest.approx(alone[name], rel=1e-6), name


def test_fewer_held_out_examples_than_ranks_are_refused(train: Train, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [pair(70)])
    with pytest.raises(
        AssertionError, match=r"data\.val: 1 examples are fewer than the 2 ranks: give it more"
    ):
        train("pairs", "--data.val.path", one, *ONE_EPOCH, ranks=2)


@pytest.mark.parametrize(
    ("new", "old", "share", "count"),
    [(90, 100, 0.1, 10), (90, 4, 0.1, 4), (10, 100, 0.5, 10), (5, 5, 0.0, 0)],
)
def test_the_share_of_old_data(new: int, old: int, share: float, count: int) -> None:
    assert replay_count(new, old, share) == count


def test_a_refreshed_model_begins_with_the_old_one_and_replays_old_data(
    train: Train, runs: dict[str, Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay = {"class_path": "JSONL", "init_args": {"question": "prompt", "answer": None}}
    replay["init_args"]["path"] = str(data / "pairs.jsonl")  # type: ignore[index]
    folder = train(
        "pairs",
        *("--data.replay", json.dumps(replay), "--data.replay_share", 0.2, *ONE_EPOCH),
        pretrained=runs["pairs"] / "model",
    )
    assert "data.replay: 6 of 24 examples beside 24 new ones" in capsys.readouterr().out
    row = rows(folder)
    assert row[0]["val/loss"] == rows(runs["pairs"])[-1]["val/loss"]
    assert row[1]["optimizer_steps"] == 2  # 30 examples in micro-batches of 8, two a step


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data.batch_size", "0"), "data.batch_size=0: expected 1 or more"),
        (("--data.replay_share", "1"), "data.replay_share=1.0: expected 0 or more and less than 1"),
        (("--data.max_tokens", "5"), "tokens, more than 5: raise data.max_tokens"),
        (("--data.max_tokens", "5", "--data.long_examples", "drop"), "data.train: all 24 rows are longer"),
        (("--model.objective", "StepLabels"), "data.train: row 0: there is no column 'completions'"),
        (("--model.objective", "BradleyTery"), "Did you mean BradleyTerry?"),
        (("--model.objective.center", "-1"), "model.objective.center=-1.0: expected 0 or more"),
        (("--model.advantage", "GAE"), "there is no option model.advantage; model has"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(
    train: Train, arguments: tuple[str, ...], sentence: str, refused: Refused
) -> None:
    assert sentence in refused(train, "pairs", *arguments)


def test_an_unknown_job_is_answered_in_one_sentence(refused: Refused) -> None:
    words = ("fit", "--config", CONFIGS / "reward_model.yaml", "--job", "reward_modell")
    assert refused(command, *words) == (
        "grpo_pl: error: job: expected one of policy, reward_model, got reward_modell. Did you mean "
        "reward_model?"
    )
