"""Runs that draw prompts by their pass rates: the same whoever samples, on any ranks, stopped or not."""

import csv
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import Fit, OverARun, Refused
from helpers.run_results import NO_VALIDATION, column, same, saved, untimed

from grpo_pl.functional import derive_seed
from grpo_pl.runs.layout import ENDED_FILE

pytestmark = pytest.mark.usefixtures("forked_engines")
WINDOW = (
    *("--data.curriculum", "DifficultyWindow", "--data.curriculum.keep_hard", "0.25"),
    *("--data.train.size", "8", "--samples.every", "0", *NO_VALIDATION),
)
KEPT = ("--data.keep_rollouts", "true")
FIXED = ("--model.optimizer.lr", "0.0", *KEPT)
"""Weights that never change: what differs in the last bit between engines and ranks changes no response."""
OVERLAPPED = ("--data.engine", "OverlappedEngine", "--data.engine.engine", "InProcessEngine")


def sampled(folder: Path) -> list[dict[str, Any]]:
    """Every response that a run has kept."""
    files = sorted((folder / "rollouts").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def visited(folder: Path) -> list[list[str]]:
    """The prompts of each iteration, in alphabetical order."""
    found: dict[int, set[tuple[int, str]]] = {}
    for row in sampled(folder):
        found.setdefault(row["iteration"], set()).add((row["prompt_seed"], row["prompt"]))
    return [sorted(prompt for _, prompt in found[iteration]) for iteration in sorted(found)]


def table(folder: Path) -> list[dict[str, str]]:
    """The pass rates that people read."""
    with (folder / "pass_rates.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_window_that_keeps_everything_changes_no_bit(fit: Fit) -> None:
    plain = fit(*NO_VALIDATION, "--trainer.max_epochs", "2")
    window = fit(
        *(*NO_VALIDATION, "--trainer.max_epochs", "2"),
        *("--data.curriculum", "DifficultyWindow", "--data.curriculum.keep_easy", "1.0"),
        *("--data.curriculum.keep_hard", "1.0"),
    )
    assert same(saved(plain)["state_dict"], saved(window)["state_dict"])
    assert table(plain) == table(window)


def test_the_table_counts_what_was_sampled_and_not_learned_from_too(fit: Fit) -> None:
    folder = fit(*WINDOW, *KEPT, "--data.resample.rounds", "3", "--trainer.max_epochs", "4")
    assert sum(column(folder, "rollout/groups_replaced")) > 0
    responses, right = Counter[str](), Counter[str]()
    for row in sampled(folder):
        responses[row["prompt"]] += 1
        right[row["prompt"]] += row["reward"] > 0.5
    rows = table(folder)
    assert {row["prompt"]: int(row["responses"]) for row in rows} == responses
    assert {row["prompt"]: int(row["right"]) for row in rows} == {
        prompt: right[prompt] for prompt in responses
    }
    for row in rows:
        assert float(row["pass_rate"]) == pytest.approx(int(row["right"]) / int(row["responses"]), abs=1e-3)
    assert column(folder, "rollout/prompts_visited")[-1] == len(rows) / 8


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("--data.resample.rounds", "2"), id="dynamic sampling"),
        pytest.param((*OVERLAPPED, "--model.correction", "ImportanceCorrection"), id="sampled ahead"),
    ],
)
def test_a_killed_run_ends_like_one_that_nobody_disturbed(
    fit: Fit, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    words = (*WINDOW, *settings, "--trainer.max_epochs", "5", "--checkpoint.every_n_epochs", "2")
    whole = fit(*words)
    assert max(column(whole, "rollout/prompts_hard")) > 0, "nothing is drawn less often: this shows nothing"
    killed = tmp_path / "run"
    shutil.copytree(whole, killed, symlinks=True)
    (killed / ENDED_FILE).unlink()
    for path in (killed / "checkpoints").glob("iteration-0005.ckpt*"):
        path.unlink()
    (killed / "pass_rates.csv").unlink()
    fit(*words, root=killed)
    assert untimed(whole) == untimed(killed)
    assert table(whole) == table(killed)
    ours, theirs = saved(whole), saved(killed)
    assert same(ours["state_dict"], theirs["state_dict"])
    assert same(ours["RolloutDataModule"]["visits"], theirs["RolloutDataModule"]["visits"])


FIVE = (*WINDOW, *FIXED, "--trainer.max_epochs", "5")
CUT_FOR_TWO = ("--trainer.accumulate_grad_batches", "1")


@pytest.fixture(scope="module")
def one(fit: Fit) -> Path:
    """A window's run in one process, which samples what it learns from at once."""
    return fit(*FIVE, *CUT_FOR_TWO)


def test_two_ranks_visit_the_prompts_of_one(one: Path, fit: Fit) -> None:
    two = fit(*FIVE, *CUT_FOR_TWO, "--trainer.strategy", "ddp", ranks=2)
    assert visited(one) == visited(two)
    assert table(one) == table(two)
    assert visited(one) != visited(fit(*FIVE, *CUT_FOR_TWO, "--data.curriculum", "null"))
    for name in ("prompts_visited", "prompts_hard", "prompts_easy", "pass_rate"):
        assert column(one, f"rollout/{name}") == pytest.approx(column(two, f"rollout/{name}"))


def test_an_engine_that_samples_ahead_visits_what_one_that_does_not_visits_with_the_same_delay(
    one: Path, fit: Fit
) -> None:
    words = (*FIVE, "--model.correction", "ImportanceCorrection")
    ahead, late = fit(*words, *OVERLAPPED), fit(*words, "--data.curriculum.delay", "1")
    assert visited(ahead) == visited(late)
    assert visited(late) != visited(one)


def test_kept_rollouts_are_replayed_to_the_bit(fit: Fit) -> None:
    words = (*WINDOW, "--trainer.max_epochs", "4")
    run = fit(*words, *KEPT)
    again = fit(
        *words, "--data.engine", "ReplayEngine", "--data.engine.path", run / "rollouts", "--data.val", "null"
    )
    assert same(saved(run)["state_dict"], saved(again)["state_dict"])
    assert table(run) == table(again)


def test_pass_rates_of_other_prompts_are_left_behind(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    words = (*NO_VALIDATION, "--data.train.size", "8", "--data.changed_prompts", "warn")
    run = fit(*words, "--trainer.max_epochs", "1")
    last = run / "checkpoints" / "last.ckpt"
    other = fit(*words, "--data.train.size", "9", "--ckpt_path", last, "--trainer.max_epochs", "2")
    assert "the pass rates of data.train begin anew: its prompts are others" in caplog.text
    assert sum(int(row["visits"]) for row in table(other)) == 4, "of one iteration"


@pytest.mark.parametrize("ranks", [1, 2])
def test_dynamic_sampling_takes_prompts_that_no_rank_has_in_the_iteration_and_all_in_turn(
    fit: Fit, ranks: int
) -> None:
    """Rewards are never won, so that every group is replaced in every round: 8 other prompts an iteration."""
    words = ("--data.resample.rounds", "3", "--model.rewards.digit.pattern", "never", *KEPT, *NO_VALIDATION)
    strategy = ("--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", "1") if ranks > 1 else ()
    rows = sampled(fit(*words, *strategy, "--trainer.max_epochs", "7", ranks=ranks))
    taken = []
    for iteration in range(7):
        seeds = {derive_seed(0, "rollout", iteration, position) for position in range(4)}
        groups = {r["prompt_seed"]: r["prompt"] for r in rows if r["iteration"] == iteration + 1}
        own = {prompt for seed, prompt in groups.items() if seed in seeds}
        instead = [prompt for seed, prompt in groups.items() if seed not in seeds]
        assert len(own) == 4
        assert len(instead) == len(set(instead)) == 8
        assert not own & set(instead)
        taken += instead
    assert len(taken[:48]) == len(set(taken[:48])), "64 prompts last for so many without one twice"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--data.pass_rates.by correct", "data.pass_rates.by=correct: model.rewards has digit: name one"),
        (
            "--data.curriculum DifficultyWindow --data.curriculum.delay 0 --data.engine OverlappedEngine "
            "--data.engine.engine InProcessEngine",
            "data.curriculum.delay=0: the engine samples 1 iterations ahead: set it to at least 1, or",
        ),
        (
            "--data.curriculum DifficultyWindow --data.curriculum.low 2",
            "data.curriculum.low=2.0: expected 0 <= low",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_first(
    refused: Refused, over_a_run: OverARun, arguments: str, sentence: str
) -> None:
    assert sentence in refused(over_a_run, arguments)


def test_a_checkpoint_of_before_begins_with_no_pass_rates(fit: Fit) -> None:
    run = fit(*WINDOW, "--trainer.max_epochs", "1")
    path = run / "checkpoints" / "iteration-0001.ckpt"
    content = torch.load(path, weights_only=True)
    del content["RolloutDataModule"]["visits"]
    old = run.parent / "old.ckpt"
    torch.save(content, old)
    more = fit(*WINDOW, "--ckpt_path", old, "--trainer.max_epochs", "2")
    assert sum(int(row["visits"]) for row in table(more)) == 4
