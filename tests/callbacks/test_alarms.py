"""Alarms by hand: when they hold, when they must not, and that each is said once."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.commands import Fit, Refused, Stopped
from helpers.run_results import NO_VALIDATION, column, rows

from grpo_pl.callbacks.alarm_rules import (
    Alarm,
    AllTruncated,
    EntropyCollapse,
    KLExplosion,
    MismatchGrowth,
    NoSignal,
    RewardHacking,
    Row,
    onsets,
)
from grpo_pl.functional import wilson_interval

DEFAULTS = EntropyCollapse(), KLExplosion(), NoSignal(), AllTruncated(), MismatchGrowth(), RewardHacking()
QUIET = ("--samples.every", 0, *NO_VALIDATION)
OWN = ("--alarms.own", json.dumps([{"class_path": "helpers.faults.Always", "init_args": {"since": 2}}]))


def series(key: str, values: Sequence[float]) -> list[Row]:
    """Row 0, and an iteration for each value."""
    return [{"iteration": 0.0}, *({"iteration": i + 1.0, key: v} for i, v in enumerate(values))]


def holds(alarm: Alarm, some: Sequence[Row]) -> list[float]:
    """The iterations in which an alarm holds, each judged by the rows up to it."""
    return [row["iteration"] for i, row in enumerate(some) if alarm.check(some[: i + 1])]


@pytest.mark.parametrize(
    ("alarm", "key", "values", "iterations"),
    [
        (EntropyCollapse(), "train/entropy", [0.5, *[0.01] * 6], [6, 7]),
        (EntropyCollapse(), "train/entropy", [0.01, 0.01, 0.01, 0.01, 0.03] * 4, []),
        (EntropyCollapse(below=0.6, window=1), "train/entropy", [0.7, 0.5, 0.6], [2]),
        (EntropyCollapse(), "train/entropy", [math.nan] * 9, []),
        (KLExplosion(window=3), "train/kl", [0.1, 0.5, 1.2, 1.5, 2.0], [4, 5]),
        (KLExplosion(window=3), "train/kl", [0.1, 90.0, 0.1, 90.0, 0.1, 0.1], [4]),
        (KLExplosion(window=3), "train/kl", [0.1, 0.1, 90.0, 0.1, 0.1, 90.0, 0.1], []),
        (KLExplosion(), "train/kl", [0.1, 2, 0.2, 2, 2], [5]),
        (KLExplosion(), "train/kl", [0.9] * 9, []),
        (NoSignal(), "rollout/groups_without_signal", [0.9, 1, 1, 1, 1, 1], [6]),
        (NoSignal(), "rollout/groups_without_signal", [0.99] * 9, []),
        (NoSignal(share=0.9, window=2), "rollout/groups_without_signal", [0.95, 0.9, 0.89], [2]),
        (NoSignal(), "rollout/reward_std", [0.1, 0, 0, 0, 0, 0], [6]),
        (NoSignal(), "rollout/reward_std", [0, 0, 0, 0, 0.01] * 3, []),
        (AllTruncated(), "rollout/truncated", [0.9, 1, 0.95, 0.96, 1, 1, 0.5, 1], [6]),
        (AllTruncated(), "rollout/truncated", [0.94] * 9, []),
        (MismatchGrowth(), "sync/logprob_mismatch", [0.02] * 5 + [0.07] * 5, [8, 9, 10]),
        (MismatchGrowth(), "sync/logprob_mismatch", [0.02] * 5 + [0.05] * 5, []),
        (MismatchGrowth(), "sync/logprob_mismatch", [0.001] * 5 + [0.04] * 5, []),
        (MismatchGrowth(), "sync/logprob_mismatch", [0.3] * 20, []),
        (MismatchGrowth(), "sync/logprob_mismatch", [0.02, 0.02, 0.9] * 6, []),
    ],
)
def test_when_it_holds_by_hand(alarm: Alarm, key: str, values: list[float], iterations: list[float]) -> None:
    assert holds(alarm, series(key, [float(value) for value in values])) == iterations


def judged(
    correct: Sequence[int], rewards: Sequence[float], every: int = 5, problems: int = 200
) -> list[Row]:
    """A run that is validated before it starts and every few iterations, with these numbers right."""
    some = [
        {"iteration": float(i), "rollout/reward": r, "rollout/reward_std": 0.4} for i, r in enumerate(rewards)
    ]
    del some[0]["rollout/reward"], some[0]["rollout/reward_std"]
    for row, right in zip(some[::every], correct, strict=False):
        low, high = wilson_interval(float(right), problems)
        row |= {"val/accuracy": right / problems, "val/accuracy_low": low, "val/accuracy_high": high}
    return list(some)


RISING = [0.1 + 0.02 * i for i in range(31)]


@pytest.mark.parametrize(
    ("correct", "rewards", "iterations"),
    [
        pytest.param([100, 120, 140, 90, 80, 80, 80], RISING, list(range(20, 31)), id="falls for good"),
        pytest.param([100, 120, 140, 90, 140, 90, 140], RISING, [], id="falls once at a time"),
        pytest.param([100, 120, 140, 126, 126, 126, 126], RISING, [], id="within the interval"),
        pytest.param([100, 120, 140, 90, 80, 80, 80], [0.5] * 31, [], id="the reward does not rise"),
        pytest.param([100, 120, 140, 90, 80, 80, 80], RISING[::-1], [], id="the reward falls too"),
        pytest.param([140, 90, 80, 80, 80, 80, 80], RISING, list(range(10, 31)), id="from the start"),
        pytest.param([140, 90, 80, 140, 140, 140, 140], RISING, list(range(10, 15)), id="and recovers"),
    ],
)
def test_reward_hacking_by_hand(correct: list[int], rewards: list[float], iterations: list[int]) -> None:
    assert holds(RewardHacking(), judged(correct, rewards)) == iterations


def test_reward_hacking_says_both_iterations() -> None:
    said = RewardHacking().check(judged([100, 120, 140, 90, 80], RISING[:21]))
    assert said is not None
    assert "val/accuracy has fallen from 0.700 (0.633 to 0.759) to 0.400 (0.335 to 0.469)" in said
    assert "since iteration 10, and rollout/reward has risen from 0.280 to 0.480" in said


def test_pass_at_k_is_not_what_falls() -> None:
    some = [
        {key.replace("accuracy", "accuracy_pass@4"): value for key, value in row.items()}
        for row in judged([140, 80, 80, 80], RISING[:16])
    ]
    assert holds(RewardHacking(), some) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_run_that_learns_raises_none(seed: int) -> None:
    """200 iterations of 64 responses each, of which ever more are right, and 40 validations."""
    noise, some = random.Random(seed), []
    for i in range(200):
        truth = 0.3 + 0.5 * min(i / 100, 1)
        right = sum(noise.random() < truth for _ in range(64)) / 64
        row = {
            "iteration": float(i), "rollout/reward": right,
            "rollout/reward_std": math.sqrt(right * (1 - right)),
            "rollout/groups_without_signal": noise.random() * 0.8, "rollout/truncated": noise.random() * 0.3,
            "train/entropy": 0.5 / (1 + i / 20) + 0.05 * noise.random(),
            "train/kl": 0.001 * i * math.exp(noise.gauss(0, 0.7)),
            "sync/logprob_mismatch": 0.01 * math.exp(noise.gauss(0, 0.5)),
        }  # fmt: skip
        if i % 5 == 0:
            solved = sum(noise.random() < truth for _ in range(200))
            low, high = wilson_interval(float(solved), 200)
            row |= {"val/accuracy": solved / 200, "val/accuracy_low": low, "val/accuracy_high": high}
        some.append(row)
    assert {alarm.name: holds(alarm, some) for alarm in DEFAULTS} == {alarm.name: [] for alarm in DEFAULTS}


@pytest.mark.parametrize("alarm", DEFAULTS, ids=lambda alarm: alarm.name)
def test_before_anything_is_measured_none_holds(alarm: Alarm) -> None:
    assert alarm.check([{"iteration": 0.0}]) is None
    assert alarm.check([{"iteration": float(i)} for i in range(20)]) is None


def test_an_alarm_is_named_after_its_class() -> None:
    assert [alarm.name for alarm in DEFAULTS] == [
        *("entropy_collapse", "kl_explosion", "no_signal", "all_truncated", "mismatch_growth"),
        "reward_hacking",
    ]


def test_an_onset_is_where_an_alarm_begins_to_hold() -> None:
    some = series("alarm/no_signal", [0.0, 1.0, 1.0, 0.0, 1.0])
    some[2] = {**some[2], "alarm/always": 1.0}
    some[3] = {**some[3], "alarm/other": 1.0}
    assert onsets(some) == {2: ["always", "no_signal"], 3: ["other"], 5: ["no_signal"]}


# --------------------------------------------------------------------------------------------------- in a run


def alarms_said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("ALARM")]


def test_the_tiny_config_raises_none(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit()
    assert not alarms_said(capsys)
    columns = {key for row in rows(folder) for key in row if key.startswith("alarm/")}
    assert columns == {f"alarm/{alarm.name}" for alarm in DEFAULTS}
    assert all(value == 0 for name in columns for value in column(folder, name))


def test_an_onset_is_said_once_also_where_the_run_is_resumed(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    truncation = ("--alarms.all_truncated.window", 2)
    folder = fit(*truncation, *OWN, *QUIET)
    assert [line.split(":")[0] for line in alarms_said(capsys)] == [
        "ALARM all_truncated in iteration 2",
        "ALARM always in iteration 2",
    ]
    assert column(folder, "alarm/always") == column(folder, "alarm/all_truncated") == [0, 1, 1]
    fit(*truncation, *OWN, *QUIET, "--trainer.max_epochs", 4, "--ckpt_path", "last", root=folder)
    assert not alarms_said(capsys)
    assert column(folder, "alarm/always") == [0, 1, 1, 1]


def test_an_alarm_may_end_the_run(fit: Fit, stopped: Stopped, tmp_path: Path) -> None:
    ending = ("--alarms.all_truncated.window", 2, "--alarms.all_truncated.stop", "true")
    said = stopped(fit, *ending, *QUIET, root=tmp_path / "run")
    assert "alarm all_truncated in iteration 2: rollout/truncated was at least 100% in 2 iterations" in said
    assert "data.sampling.max_tokens" in said
    assert column(tmp_path / "run", "alarm/all_truncated") == [0, 1]
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").resolve().name == "iteration-0001.ckpt"


def test_an_alarm_may_be_left_out(fit: Fit) -> None:
    (_, row) = rows(fit("--alarms.no_signal", "null", "--trainer.max_epochs", 1, *QUIET))
    assert "alarm/no_signal" not in row
    assert "alarm/kl_explosion" in row


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--alarms.kl_explosion.above", -1), "alarms.kl_explosion.above=-1.0: expected 0 or more"),
        (("--alarms.no_signal.window", 0), "alarms.no_signal.window=0: expected 1 or more"),
        (("--alarms.no_signal.widnow", 3), "Did you mean alarms.no_signal.window?"),
        (("--alarms.own", "[NoSignals]"), "Did you mean NoSignal?"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(
    fit: Fit, refused: Refused, arguments: tuple[object, ...], sentence: str
) -> None:
    assert sentence in refused(fit, *arguments)
