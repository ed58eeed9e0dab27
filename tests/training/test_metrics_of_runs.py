"""What runs log: nothing that was not measured, the same on any number of ranks, and every token sampled."""

import json
import re
from pathlib import Path

import pytest
from helpers.columns import known_columns, unknown_columns
from helpers.commands import Fit, Refused
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION, column, rows, saved

from grpo_pl.callbacks.curves import draw_curves
from grpo_pl.runs.layout import METRICS_FILE, read_metrics

BARE = ("--model.kl", "null", "--model.reference", "null", "--samples.every", 0, *NO_VALIDATION)
OF_READ_TOKENS = {
    *("train/loss", "train/entropy", "train/effective_sample_size", "train/ratio_deviation"),
    *("train/clip_fraction", "train/clip_fraction_positive", "train/clip_fraction_negative"),
    *("sync/logprob_mismatch", "sync/logprob_mismatch_max"),
    *("sync/weight_mean", "sync/weights_outside", "sync/effective_sample_share"),
}


def reward(name: str, **arguments: object) -> tuple[str, str]:
    """The run's only reward."""
    return "--model.rewards.digit", json.dumps(
        {"class_path": f"helpers.faults.{name}", "init_args": arguments}
    )


# --------------------------------------------------------------------------------------- what is not measured


def test_where_no_group_has_a_signal_nothing_is_said_of_the_policy_and_no_alarm_of_its_entropy(
    fit: Fit, capfd: pytest.CaptureFixture[str]
) -> None:
    run = (*reward("Constant"), *BARE, "--model.correction", "ImportanceCorrection")
    folder = fit(*run, "--trainer.max_epochs", 6)
    for row in rows(folder)[1:]:
        assert not OF_READ_TOKENS & row.keys()
        assert row["train/read"] == 0
        assert row["rollout/groups_without_signal"] == 1
        assert row["train/grad_norm"] == 0, "the gradient of nothing is 0: that is measured"
    assert not any(column(folder, "alarm/entropy_collapse"))
    assert column(folder, "alarm/no_signal")[-1] == 1
    assert "entropy_collapse" not in capfd.readouterr().err
    draw_curves(read_metrics(folder / METRICS_FILE), folder / "curves.png")


def test_a_sample_of_silent_responses_measures_what_nothing_else_would(fit: Fit) -> None:
    run = (*reward("Constant"), *BARE, "--trainer.max_epochs", 2)
    row = rows(fit(*run, "--model.read_silent", 3))[-1]
    assert row["train/read"] == 3 / 16
    assert OF_READ_TOKENS - row.keys() == {
        name for name in OF_READ_TOKENS if "weight" in name or "share" in name
    }
    assert row["train/entropy"] > 3
    every = rows(fit(*run, "--model.read_silent", 99))[-1]
    with_kl = rows(
        fit(*reward("Constant"), *NO_VALIDATION, "--model.kl.coefficient", 0, "--trainer.max_epochs", 2)
    )
    assert every["train/read"] == with_kl[-1]["train/read"] == 1
    for name in OF_READ_TOKENS & row.keys():
        assert every[name] == pytest.approx(with_kl[-1][name], rel=1e-4, abs=1e-7), name


def test_reading_silent_responses_trains_the_same_policy(fit: Fit) -> None:
    plain, reading = (saved(fit(*BARE, "--model.read_silent", n))["state_dict"] for n in (0, 5))
    for name, weights in plain.items():
        assert float((weights - reading[name]).abs().max()) < 1e-5, name


def test_a_reward_that_is_down_has_no_value_rather_than_its_last_one(fit: Fit) -> None:
    folder = fit(
        *(*reward("Fading", calls=2), *BARE, "--trainer.max_epochs", 4, "--trainer.limit_val_batches", 1),
        *("--checkpoint.monitor", "rollout/reward", "--trainer.logger", "CSVLogger"),
        *("--trainer.logger.save_dir", "logs", "--alarms.no_signal.window", 2),
    )
    measured = rows(folder)[1:]
    for name in ("rewards/digit", "rollout/reward", "rollout/reward_std", "train/entropy"):
        assert [name in row for row in measured] == [True, True, False, False], name
    assert column(folder, "rewards/digit_abstained") == [0, 0, 1, 1]
    assert column(folder, "alarm/no_signal") == [0, 0, 0, 1]


def test_a_negative_number_of_silent_responses_is_refused(fit: Fit, refused: Refused) -> None:
    assert "read_silent=-1: expected 0 or more" in refused(fit, "--model.read_silent", -1)


# -------------------------------------------------------------------------------------------------- any ranks


def test_a_rank_that_reads_nothing_drags_no_mean(fit: Fit) -> None:
    run = (
        *(*BARE, "--data.prompts_per_iteration", 2, "--data.minibatches", 1, "--data.update_epochs", 2),
        *("--trainer.max_epochs", 2, "--trainer.accumulate_grad_batches", 1),
    )
    one, two = rows(fit(*run))[1:], rows(fit(*run, ranks=2))[1:]
    silent = [row["rollout/groups_without_signal"] for row in one]
    assert 0.5 in silent, "one rank has a signal, the other has none"
    for alone, both in zip(one, two, strict=True):
        assert alone.keys() == both.keys()
        for name in (OF_READ_TOKENS | {"train/read", "rollout/tokens_generated"}) & alone.keys():
            assert both[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name


# ------------------------------------------------------------------------------------------- tokens generated


def test_a_budget_counts_the_tokens_that_were_sampled_and_thrown_away(fit: Fit) -> None:
    run = ("--trainer.max_epochs", -1, "--budget.response_tokens", 1024, *BARE, *reward("Constant"))
    plain = fit(*run)
    assert column(plain, "rollout/tokens_generated") == column(plain, "rollout/tokens")
    folder = fit(*run, "--data.resample", "DynamicSampling", "--data.resample.rounds", 3)
    generated, learned = column(folder, "rollout/tokens_generated"), column(folder, "rollout/tokens")
    assert generated == pytest.approx([3 * n for n in learned], rel=0.2), "nothing is ever kept"
    assert sum(generated[:-1]) < 1024 <= sum(generated)
    assert len(generated) == 2 < len(column(plain, "rollout/tokens"))
    last = rows(folder)[-1]
    assert last["time/tokens_per_s"] == pytest.approx(
        last["rollout/tokens_generated"] / last["time/iteration_s"], rel=1e-6
    )


def test_greedy_responses_are_generated_too(fit: Fit) -> None:
    folder = fit("--model.advantage", "ReMax", *BARE, "--trainer.max_epochs", 1, "--data.group_size", 1)
    row = rows(folder)[-1]
    assert row["rollout/tokens"] < row["rollout/tokens_generated"] <= row["rollout/tokens"] + 4 * 16


# ----------------------------------------------------------------------------------------------- every column


def test_every_column_of_a_run_with_everything_stands_in_the_table(fit: Fit, outcome_model: Path) -> None:
    folder = fit(
        *("--model.critic", "ValueHead", "--model.advantage", "GAE", "--model.entropy", "EntropyBonus"),
        *("--model.correction", "ImportanceCorrection", "--model.kl.controller", "AdaptiveCoefficient"),
        *("--data.resample", "DynamicSampling", "--data.resample.by", "digit", "--data.val_samples", 2),
        *("--gradient_terms.every", 1),
        *("--model.rewards.model.class_path", "OutcomeRewardModel", "--trainer.max_epochs", 2),
        *("--model.rewards.model.init_args.pretrained", outcome_model, "--data.engine", "InProcessEngine"),
    )
    assert unknown_columns(folder) == set()
    assert {"train/explained_variance", "gradient/value_critic_norm"} <= {
        c for row in rows(folder) for c in row
    }


def test_every_column_of_steps_and_of_kept_rollouts_stands_in_the_table(fit: Fit) -> None:
    steps = ("--config", ROOT / "configs" / "ablations" / "process_supervision.yaml")
    assert unknown_columns(fit(*steps, "--trainer.max_epochs", 1)) == set()


def test_every_column_that_the_code_names_stands_in_the_table() -> None:
    """Those of parts that no run above has, too."""
    files = (ROOT / "grpo_pl").rglob("*.py")
    named = {n for f in files for n in re.findall(r'"((?:rollout|train|sync)/\w+)"', f.read_text())}
    assert len(named) > 50
    assert {n for n in named if not any(k.fullmatch(n) for k in known_columns().values())} == set()


def test_no_row_of_the_table_is_written_twice() -> None:
    names = list(known_columns())
    assert len(names) == len(set(names)) > 50
