import csv
import json
import math
import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest
import torch

from grpo_pl.callbacks.curves import draw_curves
from grpo_pl.callbacks.progress import line
from grpo_pl.callbacks.samples import Samples, best_to_worst
from grpo_pl.runs.checkpoint_io import AtomicCheckpointIO
from grpo_pl.runs.layout import move_aside, read_metrics, write_metrics
from grpo_pl.system.atomic_files import write_atomically
from grpo_pl.system.output import captured_output
from grpo_pl.types import SampleRecord

calls = []


def interrupt_in_iteration_2(**_):
    """A reward that stops the run from inside, as Ctrl-C does; a rollout has 16 responses."""
    calls.append(1)
    if len(calls) > 16:
        raise KeyboardInterrupt
    return len(calls) % 2


@pytest.fixture(scope="module")
def run(fit):
    """Three iterations, validated every second one."""
    return fit("--trainer.check_val_every_n_epoch", 2, "--checkpoint.save_top_k", -1, "--curves.draw", "true")


def rows_of(run):
    return read_metrics(run / "metrics.csv")


def samples_of(run):
    return [json.loads(text) for text in (run / "samples.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ metrics.csv


def test_row_0_is_the_validation_before_training_and_then_comes_one_row_an_iteration(run):
    rows = rows_of(run)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert {key for key in rows[0] if not key.startswith(("val/", "time/"))} == {"iteration"}
    assert "val/accuracy" in rows[0]


def test_validation_is_in_the_rows_where_it_was_measured_and_in_no_other(run):
    for key in ("val/accuracy", "val/accuracy_low", "val/accuracy_high", "time/validate_s"):
        assert [key in row for row in rows_of(run)] == [True, False, True, False], key


def test_every_iteration_has_the_contracts_columns(run):
    keys = {
        *("iteration", "optimizer_steps", "lr", "rewards/digit", "rollout/reward", "rollout/reward_std"),
        *("rollout/response_tokens", "rollout/truncated", "rollout/tokens", "train/loss", "train/entropy"),
        *("train/kl", "train/clip_fraction", "train/grad_norm", "sync/logprob_mismatch", "time/sync_s"),
        *("time/generate_s", "time/score_s", "time/update_s", "time/iteration_s", "time/tokens_per_s"),
    }
    for row in rows_of(run)[1:]:
        assert keys <= row.keys()
        assert all(math.isfinite(value) for value in row.values())
        assert row["optimizer_steps"] == 2 * row["iteration"]
        stages = sum(row[f"time/{stage}_s"] for stage in ("sync", "generate", "score", "update"))
        assert row["time/iteration_s"] == pytest.approx(stages, rel=1e-6)
        assert row["time/tokens_per_s"] == pytest.approx(row["rollout/tokens"] / stages, rel=1e-6)


def test_the_models_in_memory_are_counted_and_what_they_share_is_counted_once(fit, tiny_model, outcome_model):
    """Whole critic and reward model are a trunk and a head each; a head on the trunk is a head alone."""
    from grpo_pl.models.loading import load_language_model

    trunk = sum(p.numel() for p in load_language_model(str(tiny_model), "float32").parameters())
    hidden = 64
    short = ("--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0, "--samples.every", 0)
    reward = {"class_path": "OutcomeRewardModel", "init_args": {"pretrained": str(outcome_model)}}
    ppo = ("--model.advantage", "GAE", "--model.critic")
    for arguments, models, parameters in (
        (("--model.kl", "null"), 1, trunk),
        ((), 2, 2 * trunk),
        (("--model.policy", "LoRA", "--model.reference", "AdapterOff"), 1, None),
        ((*ppo, "TrunkValueHead"), 3, 2 * trunk + hidden + 1),
        (
            (*ppo, "ValueHead", "--model.rewards", json.dumps({"rm": reward})),
            *(4, 4 * trunk + (hidden + 1) + hidden),
        ),
    ):
        row = rows_of(fit(*arguments, *short))[1]
        assert row["memory/models"] == models
        assert parameters is None or row["memory/parameters"] == parameters


def test_the_file_is_plain_csv_with_iteration_first(run):
    with (run / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["iteration", *sorted(header[1:])]
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]


def test_metrics_read_back_as_they_were_written(tmp_path):
    rows = [
        {"iteration": 0.0, "val/accuracy": 0.5},
        {"iteration": 1.0, "train/kl": 1.25e-7, "rollout/tokens": 123456789.0, "lr": -3.0},
        {"iteration": 2.0, "train/kl": 1 / 3, "val/accuracy": 1.0},
    ]
    write_metrics(tmp_path / "metrics.csv", rows)
    back = read_metrics(tmp_path / "metrics.csv")
    assert [row.keys() for row in back] == [row.keys() for row in rows]
    for row, expected in zip(back, rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-7)


def test_a_run_that_diverges_still_writes_its_row(tmp_path):
    write_metrics(tmp_path / "m.csv", [{"iteration": 1.0, "train/loss": math.nan, "train/kl": math.inf}])
    (row,) = read_metrics(tmp_path / "m.csv")
    assert math.isnan(row["train/loss"])
    assert row["train/kl"] == math.inf


def test_without_validation_there_is_no_validation_column(fit):
    run = fit("--trainer.max_epochs", 1, "--data.val", "null", "--samples.keep", 0, "--samples.every", 0)
    rows = rows_of(run)
    assert [row["iteration"] for row in rows] == [0, 1]
    assert not [key for row in rows for key in row if "val" in key]
    assert not (run / "samples.jsonl").exists() or (run / "samples.jsonl").read_text() == ""


# ------------------------------------------------------------------------------------------------------ files


def test_write_atomically_makes_the_folder_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("one", "two\n", "drei \N{EURO SIGN}"):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
        assert list(path.parent.iterdir()) == [path]


def rewrite_for_ever(path, stamp):
    rows = [{"iteration": float(n), "a": 0.0, "b": 0.0} for n in range(1000)]
    while True:
        stamp += 1
        write_metrics(path, [row | {"a": stamp, "b": stamp} for row in rows])


def test_a_kill_in_the_middle_of_a_write_never_tears_the_file(tmp_path):
    path = tmp_path / "metrics.csv"
    write_metrics(path, [{"iteration": float(n), "a": 0.0, "b": 0.0} for n in range(1000)])
    stamps = []
    for moment in range(8):
        writer = multiprocessing.get_context("fork").Process(
            target=rewrite_for_ever, args=(path, 1e6 * moment)
        )
        writer.start()
        while check_whole(path) <= 1e6 * moment:  # until it is this writer's
            assert writer.is_alive()
        time.sleep(0.003 * moment)
        writer.kill()
        writer.join(10)
        stamps.append(check_whole(path))
    assert stamps == sorted(set(stamps))


def check_whole(path):
    """The stamp that every row of the file bears."""
    rows = read_metrics(path)
    assert [row["iteration"] for row in rows] == list(range(1000))
    assert {(row["a"], row["b"]) for row in rows} == {(rows[0]["a"], rows[0]["a"])}
    assert path.read_text().endswith("\n")
    return rows[0]["a"]


def test_move_aside_takes_the_first_free_name_and_says_it(tmp_path, capsys):
    folder = tmp_path / "run"
    for n in (1, 2):
        write_metrics(folder / "metrics.csv", [{"iteration": float(n)}])
        assert move_aside(folder) == tmp_path / f"run.{n}"
        assert f"run.{n}" in capsys.readouterr().out
        assert read_metrics(tmp_path / f"run.{n}" / "metrics.csv") == [{"iteration": n}]
    assert not folder.exists()


def test_a_folder_without_a_run_stays_where_it_is(fit, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    fit("--trainer.max_epochs", 1, "--data.val", "null", root=tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").exists()


# ----------------------------------------------------------------------------------------------------- resume


def test_resume_drops_what_came_after_the_checkpoint_and_goes_on_without_a_gap(run, fit, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(run, resumed, symlinks=True)
    with (resumed / "samples.jsonl").open("a") as file:
        file.write('{"iteration": 3, "prompt": "torn of')
    checkpoint = resumed / "checkpoints" / "iteration-0002.ckpt"
    before, written = rows_of(resumed), samples_of(run)
    fit(
        *("--trainer.check_val_every_n_epoch", 2, "--trainer.max_epochs", 4, "--checkpoint.save_top_k", -1),
        *("--ckpt_path", checkpoint),
        root=resumed,
    )
    after = rows_of(resumed)
    assert [row["iteration"] for row in after] == [0, 1, 2, 3, 4]
    assert after[:3] == before[:3]
    for key in after[3].keys() - {key for key in after[3] if key.startswith(("time/", "memory/"))}:
        assert after[3][key] == before[3][key], key
    samples = samples_of(resumed)
    assert [s["iteration"] for s in samples] == [i for i in (1, 2, 3, 4) for _ in range(16)]
    assert samples[: len(written)] == written


# ---------------------------------------------------------------------------------------------------- samples


def test_every_sample_carries_its_rewards_by_component_and_its_advantage(run):
    samples = samples_of(run)
    assert [s["iteration"] for s in samples] == [i for i in (1, 2, 3) for _ in range(16)]
    for sample in samples:
        assert sample["rewards"].keys() == {"digit"}
        assert (
            sample["reward"]
            == sample["rewards"]["digit"]
            == any(c in "0123456789" for c in sample["response"])
        )
        assert {"prompt", "answer", "response_tokens", "truncated", "advantage"} <= sample.keys()
    for start in range(0, len(samples), 4):
        group = samples[start : start + 4]
        assert len({sample["prompt"] for sample in group}) == 1
        assert sum(sample["advantage"] for sample in group) == pytest.approx(0, abs=1e-5)
        if len({sample["reward"] for sample in group}) > 1:
            assert max(group, key=lambda s: s["advantage"])["reward"] == 1


def test_the_mean_reward_of_the_samples_is_the_rows_reward(run):
    for row in rows_of(run)[1:]:
        rewards = [s["reward"] for s in samples_of(run) if s["iteration"] == row["iteration"]]
        assert sum(rewards) / len(rewards) == pytest.approx(row["rollout/reward"])


@pytest.mark.parametrize("key", ["keep", "every", "rows"])
def test_a_negative_setting_is_refused_by_its_key(key):
    with pytest.raises(ValueError, match=rf"^{key}=-1"):
        Samples(**{key: -1})


def record(reward):
    return SampleRecord(
        prompt="p", answer="a", response="r", response_tokens=1, truncated=False, rewards={}, reward=reward,
        advantage=0.0,
    )  # fmt: skip


def test_spread_shows_the_best_the_worst_and_those_between():
    records = [record(reward) for reward in (0.0, 1.0, 0.25, None, 0.5)]
    assert [r.reward for r in best_to_worst(records, 3)] == [1.0, 0.25, None]
    assert [r.reward for r in best_to_worst(records, 9)] == [1.0, 0.5, 0.25, 0.0, None]


# ----------------------------------------------------------------------------------------------------- curves


def colours(path):
    """How many different colours a valid PNG has."""
    from matplotlib.image import imread

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 400
    return len(np.unique(pixels[::3, ::3].reshape(-1, pixels.shape[-1]).round(2), axis=0))


def test_a_run_draws_its_curves(run):
    assert colours(run / "curves.png") > 20


@pytest.mark.parametrize("missing", ["train/kl", "val/", "rollout/reward_std", "time/", "train/entropy"])
def test_curves_are_drawn_where_something_was_not_measured(run, tmp_path, missing):
    rows = [{k: v for k, v in row.items() if not k.startswith(missing)} for row in rows_of(run)]
    draw_curves(rows, tmp_path / "curves.png")
    assert colours(tmp_path / "curves.png") > 20


def test_curves_are_drawn_before_the_first_iteration_too(run, tmp_path):
    draw_curves(rows_of(run)[:1], tmp_path / "curves.png")
    assert colours(tmp_path / "curves.png") > 5


def test_an_interrupted_run_keeps_its_rows_and_draws_its_curves(fit, tmp_path):
    reward = (
        f"{{stop: {{class_path: Function, init_args: {{function: {__name__}.interrupt_in_iteration_2}}}}}}"
    )
    calls.clear()
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit("--model.rewards", reward, "--curves.draw", "true", root=tmp_path / "run")
    assert [row["iteration"] for row in rows_of(tmp_path / "run")] == [0, 1]
    assert colours(tmp_path / "run" / "curves.png") > 20


# --------------------------------------------------------------------------------------------------- progress


def test_where_the_output_is_no_terminal_progress_is_one_line_an_iteration(fit, capsys):
    fit("--samples.every", 0, "--trainer.max_epochs", 2)
    said = capsys.readouterr().out.splitlines()
    lines = [text for text in said if text.startswith("iteration")]
    assert [text.split(":")[0] for text in said[:2]] == ["data.train", "data.val"]
    assert said[2:] == ["starting InProcessEngine", *lines]
    assert [text.split()[:2] for text in lines] == [["iteration", str(i)] for i in range(3)]
    assert "reward" in lines[1]
    assert "generate" in lines[1]


def test_a_line_shows_what_was_measured_and_nothing_else():
    row = {"iteration": 7.0, "rollout/reward": 0.5, "rollout/truncated": 0.25, "time/sync_s": 1.26}
    assert line(row) == "iteration   7  reward 0.500  truncated 25%  [dim](sync 1.3 s)[/dim]"


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(3), "global_step": 1}, path)
    unsavable = {"weights": torch.zeros(3), "junk": lambda: 0, "global_step": 2}
    with pytest.raises(AttributeError):  # a local function cannot be pickled: the save dies half-way
        AtomicCheckpointIO().save_checkpoint(unsavable, path)
    assert torch.load(path, weights_only=True)["weights"].tolist() == [1, 1, 1]
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.manifest.json"]


def test_captured_output_is_shown_only_if_the_body_raises(capfd):
    with captured_output():
        os.write(1, b"noise of a library")
    print("heard")
    assert "noise" not in "".join(text := capfd.readouterr())
    assert "heard" in text[0]
    with pytest.raises(ZeroDivisionError), captured_output():
        os.write(2, b"the reason") / 0
    assert "the reason" in capfd.readouterr().err
