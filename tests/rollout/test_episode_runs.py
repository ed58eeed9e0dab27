"""Runs with an environment: they resume, replay and divide among ranks like any other."""

import json
from pathlib import Path

import pytest
from helpers.columns import unknown_columns
from helpers.commands import Fit, Refused
from helpers.playing import talkative
from helpers.run_results import NO_VALIDATION, column, rows, same, saved, untimed

EPISODES = (
    *("--data.environment", "helpers.episodes.Greets", "--data.environment.turns", 2),
    *("--data.episodes.tokens", 100, "--data.sampling.max_tokens", 10),
    *("--model.rewards", json.dumps({"*": None, "game": "EnvironmentReward"})),
)
WHOLE = (
    *(*EPISODES, "--data.resample.rounds", 2, "--data.keep_rollouts", "true"),
    *("--model.verifiers", json.dumps({"*": None, "won": "EnvironmentSuccess"})),
    *("--model.verifiers.won.threshold", 0.25),
)


def unrounded(folder: Path) -> list[dict[str, float]]:
    """What does not show in which batches the in-process engine has sampled: it rounds by them."""
    of_batches = {"sync/logprob_mismatch", "sync/logprob_mismatch_max"}
    return [{name: x for name, x in row.items() if name not in of_batches} for row in untimed(folder)]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative(tiny_model, tmp_path_factory.mktemp("models") / "talkative")


@pytest.fixture(scope="module")
def played(fit: Fit, model: Path) -> Path:
    """Two iterations with dynamic sampling, whose rollouts are kept, and three validations."""
    return fit(*WHOLE, "--trainer.max_epochs", 2, pretrained=model)


def test_a_run_says_how_its_episodes_went(played: Path) -> None:
    assert unknown_columns(played) == set()
    assert "Unable to serialize" not in (played / "config.yaml").read_text()
    for row in rows(played):
        assert row["val/won"] == pytest.approx(1 - row["val/truncated"]), "what ends is paid 1/4"
    assert max(column(played, "val/won")) > 0
    assert max(column(played, "rollout/rounds")) == 2
    assert all(turns > 1 for turns in column(played, "episodes/turns"))
    samples = [json.loads(line) for line in (played / "samples.jsonl").read_text().splitlines()]
    assert {sample["stop"] for sample in samples} <= {"done", "turn_tokens", "tokens"}
    assert {message["role"] for message in samples[0]["transcript"]} == {"user", "assistant"}


def test_a_run_that_is_resumed_ends_like_one_that_nobody_stopped(played: Path, fit: Fit, model: Path) -> None:
    half = fit(*WHOLE, "--trainer.max_epochs", 1, pretrained=model)
    fit(*WHOLE, "--trainer.max_epochs", 2, "--ckpt_path", "last", pretrained=model, root=half)
    assert same(saved(half)["state_dict"], saved(played)["state_dict"])
    assert unrounded(half) == unrounded(played)
    assert (half / "samples.jsonl").read_bytes() == (played / "samples.jsonl").read_bytes()


def test_kept_episodes_give_the_same_training(played: Path, fit: Fit, model: Path) -> None:
    replay = ("--data.engine", "ReplayEngine", "--data.engine.path", played / "rollouts")
    again = fit(*WHOLE, *replay, "--data.val", "null", "--trainer.max_epochs", 2, pretrained=model)
    assert same(saved(again)["state_dict"], saved(played)["state_dict"])
    assert (again / "samples.jsonl").read_bytes() == (played / "samples.jsonl").read_bytes()


def test_two_ranks_play_what_one_does(fit: Fit, model: Path) -> None:
    once = (*EPISODES, "--data.minibatches", 1, "--trainer.max_epochs", 1, *NO_VALIDATION)
    one = fit(*once, pretrained=model)
    two = fit(
        *(*once, "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", 1),
        pretrained=model,
        ranks=2,
    )
    ours, theirs = (untimed(folder)[-1] for folder in (one, two))
    shared = {name for name in ours if name.startswith(("episodes/", "rollout/", "rewards/"))}
    assert {name: theirs[name] for name in shared} == pytest.approx({name: ours[name] for name in shared})
    assert theirs["train/grad_norm"] == pytest.approx(ours["train/grad_norm"], rel=1e-4)


def test_limits_of_episodes_that_nothing_plays_are_told(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--data.episodes.turns", 3, "--trainer.max_epochs", 1, *NO_VALIDATION)
    assert "data.episodes is set, and data.environment is null" in capsys.readouterr().out


def test_an_environment_that_always_fails_ends_the_run(refused: Refused, fit: Fit) -> None:
    said = refused(fit, "--data.environment", "helpers.episodes.Obeys", "--data.episodes.tokens", 100)
    assert "data.environment: all 8 episodes failed; mend it: Obeys.reset: AttributeError: " in said
