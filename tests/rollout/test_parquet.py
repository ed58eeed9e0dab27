"""Rollouts that a run keeps, and other runs that learn from the very same ones."""

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.commands import Fit, OverARun, Refused
from helpers.run_results import NO_VALIDATION, column, saved, untimed

KEEP = ("--data.keep_rollouts", "true", "--samples.every", "0")
SAMPLED = ("rollout/reward", "rollout/response_tokens", "rollout/truncated", "rewards/digit")


def replay(kept: Path) -> tuple[str, ...]:
    return "--data.engine", "ReplayEngine", "--data.engine.path", str(kept), "--samples.every", "0"


@pytest.fixture(scope="module")
def kept(fit: Fit) -> Path:
    """The folder of a run of three iterations, two optimizer steps each, with all of its rollouts."""
    return fit(*KEEP)


def test_the_same_settings_on_kept_rollouts_end_with_the_same_weights_and_metrics(
    fit: Fit, kept: Path
) -> None:
    again = fit(*replay(kept / "rollouts"), "--data.val_engine", "InProcessEngine")
    for ours, theirs in zip(untimed(again), untimed(kept), strict=True):
        theirs.pop("rollout/staleness", None)
        assert ours == theirs
    ours, theirs = saved(again)["state_dict"], saved(kept)["state_dict"]
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_another_loss_learns_from_the_same_rollouts_and_is_told_whose_they_are(
    fit: Fit, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ("--model.loss", "Reinforce", "--data.update_epochs", "2", "--data.val", "null")
    run = fit(*replay(kept / "rollouts"), *other)
    for name in SAMPLED:
        assert column(run, name) == column(kept, name)
    assert column(run, "rollout/policy_version") == [0, 2, 4]
    assert column(run, "rollout/staleness") == [], "versions of different policies are not compared"
    first, *later = column(run, "sync/logprob_mismatch")
    assert first == column(kept, "sync/logprob_mismatch")[0] < 1e-5
    assert min(later) > 0.01, "from the second iteration on, another policy than the learner's has sampled"
    assert (
        "data.engine has responses of another policy and nothing corrects for it" in capsys.readouterr().out
    )


def test_a_file_has_every_response_with_its_prompt_and_rewards(kept: Path) -> None:
    assert sorted(path.name for path in (kept / "rollouts").iterdir()) == [
        f"iteration-000{n}.parquet" for n in (1, 2, 3)
    ]
    rows = pq.read_table(kept / "rollouts" / "iteration-0002.parquet").to_pylist()
    assert len(rows) == 16
    assert len({row["prompt_seed"] for row in rows}) == 4
    for row in rows:
        assert (row["iteration"], row["policy_version"], row["temperature"]) == (2, 2, 1.0)
        assert row["prompt"].startswith("What is ")
        assert row["reward"] == row["rewards/digit"] == bool(re.search(r"\d", row["text"]))
        assert len(row["token_ids"]) == len(row["logprobs"]) == len(row["token_ends"]) > 0
    assert column(kept, "rollout/reward")[1] == sum(row["reward"] for row in rows) / 16


def test_what_was_looked_at_and_not_learned_from_is_kept_for_who_asks_again(fit: Fit) -> None:
    asking = ("--data.resample.rounds", "2", "--model.advantage", "ReMax", "--trainer.max_epochs", "2")
    run = fit(*asking, *KEEP, *NO_VALIDATION)
    assert max(column(run, "rollout/groups_replaced")) > 0
    rows = pq.read_table(run / "rollouts" / "iteration-0001.parquet").to_pylist()
    sizes = Counter((row["temperature"], row["prompt_seed"]) for row in rows)
    assert {size for (temperature, _), size in sizes.items() if temperature == 0} == {1}
    assert {size for (temperature, _), size in sizes.items() if temperature == 1} == {4}, "each group once"
    assert sum(row["learned"] for row in rows) == 16
    assert all((row["reward"] is None) == (row["temperature"] == 0) for row in rows), "of all but the greedy"
    again = fit(*asking, *replay(run / "rollouts"), *NO_VALIDATION)
    for ours, theirs in zip(untimed(again), untimed(run), strict=True):
        theirs.pop("rollout/staleness", None)
        assert ours == theirs


@pytest.mark.slow
def test_ranks_keep_a_file_each_that_any_number_of_ranks_reads(fit: Fit, kept: Path) -> None:
    two = fit(*KEEP, *NO_VALIDATION, "--trainer.strategy", "ddp", "--trainer.max_epochs", "1", ranks=2)
    assert sorted(path.name for path in (two / "rollouts").iterdir()) == [
        f"iteration-0001-rank-{n}.parquet" for n in (0, 1)
    ]
    run = fit(*replay(two / "rollouts"), *NO_VALIDATION, "--trainer.max_epochs", "1")
    assert column(run, "rollout/reward") == column(kept, "rollout/reward")[:1]


NO_VAL = ("--data.val", "null")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a validation": ((), "data.engine ReplayEngine has responses to training prompts alone.*data.val_engine"),
    "a validation by itself": (
        ("--data.val_engine", "ReplayEngine", "--data.val_engine.path", "x"),
        "data.val_engine does not sample",
    ),
    "another seed": ((*NO_VAL, "--data.seed", "1"), "has 0 responses .* the data.seed that it was sampled"),
    "more iterations": ((*NO_VAL, "--trainer.max_epochs", "4"), "has 0 responses .* for no more iterations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_does_not_fit_the_rollouts_is_refused_before_a_model_is_loaded(
    name: str, refused: Refused, over_a_run: OverARun, kept: Path
) -> None:
    arguments, sentence = REFUSED[name]
    assert re.search(sentence, refused(over_a_run, shlex.join((*replay(kept / "rollouts"), *arguments))))


def test_rollouts_in_the_runs_own_folder_are_refused(fit: Fit, refused: Refused, kept: Path) -> None:
    own: Any = ("--trainer.default_root_dir", kept, *NO_VAL)
    assert "lies in the folder of this very run" in refused(fit, *replay(kept / "rollouts"), *own)
    assert (kept / "rollouts").is_dir()


def test_a_second_engine_for_one_that_samples_is_refused(fit: Fit, refused: Refused) -> None:
    assert "data.val_engine is for a data.engine that does not" in refused(
        fit, "--data.val_engine", "InProcessEngine"
    )
