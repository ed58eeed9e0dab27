"""An unfinished run goes on by the same command, and ends as if nothing had been."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.repository import ROOT
from helpers.run_results import column, rows, saved, untimed

from grpo_pl.runs.folder import different
from grpo_pl.runs.layout import ENDED_FILE, LAST, LOCK_FILE
from grpo_pl.runs.lock import Lock
from grpo_pl.runs.manifest import Manifest, damage, manifest_path, newest_first, whole_checkpoint
from grpo_pl.system.atomic_files import DiskFullError

PACKAGE = ROOT / "grpo_pl"
FOUR = (
    *("--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "2", "--data.update_epochs", "2"),
    *("--model.reference_update", "EMA", "--model.reference_update.decay", "0.5"),
    *("--data.resample.rounds", "2", "--model.kl.controller", "AdaptiveCoefficient", "--samples.every", "0"),
)


@pytest.fixture(scope="module")
def whole(fit: Fit) -> Path:
    """Four iterations that nobody disturbed."""
    return fit(*FOUR)


@pytest.fixture
def killed(whole: Path, tmp_path: Path) -> Path:
    """The same, as a kill after its last checkpoint leaves it."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    (folder / ENDED_FILE).unlink()
    return folder


def truncate(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def same(a: Path, b: Path) -> None:
    """Both runs have left the same weights, optimizer, numbers and samples."""
    ours, theirs = saved(a), saved(b)
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, tensor in ours["state_dict"].items():
        assert torch.equal(tensor, theirs["state_dict"][name]), name
    for mine, other in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert all(torch.equal(mine["state"][i]["exp_avg"], s["exp_avg"]) for i, s in other["state"].items())
    assert untimed(a) == untimed(b)
    for file in ("samples.jsonl", "verdicts.jsonl"):
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


# ------------------------------------------------------------------------------------------ the same command


def test_whatever_is_torn_the_same_command_ends_the_run_as_if_nothing_had_been(
    whole: Path, killed: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(killed / "checkpoints" / "iteration-0004.ckpt")
    truncate(killed / "metrics.csv")
    torn = (killed / "samples.jsonl").read_text().splitlines(keepends=True)
    torn.insert(20, '{"iteration": 2, "prompt\n')
    (killed / "samples.jsonl").write_text("".join(torn[:-1]) + torn[-1][:9])
    (killed / "slurm_job.json").write_text('{"job": "7", "sta')
    (killed / "checkpoints" / ".iteration-0005.ckpt.17.partial").write_bytes(b"half")
    fit(*FOUR, root=killed)
    text = capsys.readouterr().out
    assert f"The run of {killed} goes on from iteration-0004.ckpt; --resume never starts anew." in text
    assert "iteration-0004.ckpt is passed over: it has " in text
    assert "samples.jsonl: 1 torn lines are left out" in text
    same(whole, killed)
    assert not [*killed.rglob("*.partial"), *killed.parent.glob("run.1")]
    assert not (killed / LOCK_FILE).exists()
    assert not (killed / "rollouts").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_in_its_folder(
    whole: Path, killed: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(killed / "checkpoints")
    fit(*FOUR, root=killed)
    assert "was stopped before its first checkpoint and begins again" in capsys.readouterr().out
    same(whole, killed)
    assert not killed.with_name("run.1").exists()


def test_a_run_that_was_killed_after_its_last_checkpoint_is_completed(
    whole: Path, killed: Path, fit: Fit
) -> None:
    truncate(killed / "metrics.csv")
    assert not (killed / "curves.png").exists()
    fit(*FOUR, "--curves.draw", "true", root=killed)
    same(whole, killed)
    assert (killed / "curves.png").exists()
    assert (killed / ENDED_FILE).exists()


def test_an_unfinished_run_is_moved_aside_only_where_one_says_so(
    killed: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(*FOUR, "--resume", "never", "--trainer.max_epochs", 1, root=killed)
    assert column(killed, "iteration") == [0, 1]
    assert column(killed.with_name("run.1"), "iteration") == [0, 1, 2, 3, 4]
    assert "resume: auto" in (killed / "config.yaml").read_text()
    (killed / ENDED_FILE).unlink()
    capsys.readouterr()
    fit(*FOUR, "--model.optimizer.lr", "0.5", "--trainer.max_epochs", 1, root=killed)
    assert "has other settings of model.optimizer.init_args.lr." in capsys.readouterr().out
    assert killed.with_name("run.2").exists()


def test_a_run_begins_anew_though_somebody_has_removed_its_lock(
    killed: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def take(self: Lock) -> None:
        taking(self)
        if not taken:
            (self.folder / LOCK_FILE).unlink()
        taken.append(self.folder)

    taking = Lock.take
    monkeypatch.setattr(Lock, "take", take)
    fit(*FOUR, "--resume", "never", "--trainer.max_epochs", 1, root=killed)
    assert taken == [killed, killed]
    assert column(killed, "iteration") == [0, 1]
    assert killed.with_name("run.1").exists()


def test_a_number_of_the_command_line_is_the_same_setting_as_in_a_file() -> None:
    """`--trainer.devices 1`, which may also be a word, is read as "1"; a job of SLURM says it so."""
    in_file = {"trainer": {"devices": 1, "precision": "bf16-mixed"}}
    assert not list(different(in_file, {"trainer": {"devices": "1", "precision": "bf16-mixed"}}))
    assert list(different(in_file, {"trainer": {"devices": "2", "precision": "bf16-mixed"}})) == [
        "trainer.devices"
    ]


def test_settings_in_a_list_may_stand_in_any_order_of_keys() -> None:
    one = {"class_path": "a.Own", "init_args": {"x": 1, "y": 2}}
    other = {"init_args": {"y": 2, "x": 1}, "class_path": "a.Own"}
    assert not list(different({"masks": [one]}, {"masks": [other]}))


def test_where_every_checkpoint_is_torn_nothing_begins_anew(killed: Path, fit: Fit, refused: Refused) -> None:
    for path in (killed / "checkpoints").glob("iteration-*.ckpt"):
        truncate(path)
    before = (killed / "metrics.csv").read_bytes()
    sentence = refused(fit, *FOUR, "--trainer.default_root_dir", killed)
    assert f"none of the checkpoints in {killed / 'checkpoints'} is whole" in sentence
    assert (killed / "metrics.csv").read_bytes() == before


def test_where_the_settings_are_torn_nobody_guesses(killed: Path, fit: Fit, refused: Refused) -> None:
    (killed / "config.yaml").write_text("model: {kl")
    sentence = refused(fit, *FOUR, "--trainer.default_root_dir", killed)
    assert "config.yaml is torn" in sentence
    assert "--ckpt_path last" in sentence
    assert "--resume never" in sentence


def test_going_back_puts_newer_checkpoints_out_of_the_way(killed: Path, fit: Fit) -> None:
    first = killed / "checkpoints" / "iteration-0003.ckpt"
    fit(*FOUR, "--trainer.max_epochs", 3, "--ckpt_path", first, root=killed)
    again = fit(*FOUR, "--ckpt_path", first, "--data.seed", "1", root=killed)
    assert column(again, "iteration") == [0, 1, 2, 3, 4]
    assert (killed / "checkpoints" / "iteration-0004.ckpt.superseded").is_file()


class Scrambled(pl.Callback):
    """Draws from every global generator of random numbers."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.rand(3), np.random.rand(3), random.random()


def test_no_number_of_a_run_comes_from_a_global_generator(whole: Path, fit: Fit) -> None:
    same(whole, fit(*FOUR, "--trainer.callbacks", f"{__name__}.Scrambled"))


# ------------------------------------------------------------------------------------------------ checkpoints


def test_the_last_two_are_kept_and_the_link_names_the_last(whole: Path) -> None:
    folder = whole / "checkpoints"
    assert sorted(path.name for path in folder.glob("*.ckpt")) == [
        *("iteration-0003.ckpt", "iteration-0004.ckpt", LAST)
    ]
    assert (folder / LAST).readlink() == Path("iteration-0004.ckpt")


def test_a_run_goes_on_to_a_later_end_and_removes_what_a_kill_kept_from_removal(
    killed: Path, fit: Fit
) -> None:
    folder = killed / "checkpoints"
    for name in ("iteration-0001.ckpt", "mine.ckpt"):
        shutil.copy(folder / "iteration-0003.ckpt", folder / name)
    Manifest(4, {}).write(folder / "iteration-0001.ckpt")
    fit(*FOUR, "--trainer.max_epochs", 5, root=killed)
    assert column(killed, "iteration") == [0, 1, 2, 3, 4, 5]
    assert not killed.with_name("run.1").exists()
    assert sorted(path.name for path in folder.glob("*.ckpt")) == [
        *("iteration-0004.ckpt", "iteration-0005.ckpt", LAST, "mine.ckpt")
    ]


@pytest.mark.parametrize(
    ("tear", "wrong"),
    [
        pytest.param(truncate, "bytes", id="cut"),
        pytest.param(flip_a_bit, "another checksum", id="one bit"),
        pytest.param(Path.unlink, "missing", id="gone"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_noticed_and_passed_over(
    killed: Path, tear: Callable[[Path], None], wrong: str
) -> None:
    newest, before = (killed / "checkpoints" / f"iteration-000{i}.ckpt" for i in (4, 3))
    last = killed / "checkpoints" / LAST
    assert whole_checkpoint(last) == newest
    tear(newest)
    assert wrong in damage(newest, Manifest.read(newest))
    assert whole_checkpoint(last) == before
    with pytest.raises(ValueError, match=wrong):
        whole_checkpoint(newest)
    manifest_path(before).unlink()
    assert whole_checkpoint(last) == before, "one from elsewhere has no checksums; torch opens it"
    truncate(before)
    with pytest.raises(ValueError, match="none of the checkpoints"):
        whole_checkpoint(last)


def test_a_torn_manifest_is_none(killed: Path) -> None:
    checkpoint = killed / "checkpoints" / "iteration-0004.ckpt"
    for text in ("", "{}", "[1]", '{"step": 4, "files": {"": {"bytes": 3}}}', "\0\0"):
        manifest_path(checkpoint).write_text(text)
        assert Manifest.read(checkpoint) is None


def test_the_newest_checkpoint_is_that_of_most_steps_whatever_the_clock_said(killed: Path) -> None:
    folder = killed / "checkpoints"
    for age, name in enumerate(("iteration-0004.ckpt", "iteration-0003.ckpt")):
        os.utime(folder / name, (1e9 + age, 1e9 + age))
    assert [path.name for path, _ in newest_first(folder)] == ["iteration-0004.ckpt", "iteration-0003.ckpt"]


def test_no_module_asks_the_wall_clock() -> None:
    calls = "time.time()", ".now(", ".today(", ".utcnow(", "mtime"
    for path in PACKAGE.rglob("*.py"):
        found = [call for call in calls if call in path.read_text()]
        assert not found, path


# ------------------------------------------------------------------------------------------------ a full disk


def test_a_file_that_finds_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    from grpo_pl.runs.checkpoint_io import AtomicCheckpointIO

    path = tmp_path / "iteration-0001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(3), "global_step": 1}, path)
    with file_limit(100_000), pytest.raises(DiskFullError, match="make room there"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(100_000), "global_step": 2}, path)
    assert not damage(path, Manifest.read(path))
    assert len(list(tmp_path.iterdir())) == 2


class file_limit:  # noqa: N801 - a context manager
    """No file of this process can be longer: more of it finds no room (Python ignores SIGXFSZ)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, which three checkpoints of 1.2 MB with their references do not fit on."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"only root can mount a small disk: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    small_disk: Path, whole: Path, fit: Fit, refused: Refused
) -> None:
    folder = small_disk / "run"
    sentence = refused(fit, *FOUR, "--trainer.default_root_dir", folder)
    assert "No space left on device" in sentence
    assert "make room there, and the same command continues the run" in sentence
    assert str(folder) in sentence
    kept = whole_checkpoint(folder / "checkpoints" / LAST)
    assert kept.name != "iteration-0004.ckpt"
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    fit(*FOUR, root=folder)
    same(whole, folder)


# ------------------------------------------------------------------------------------- two runs in one folder

HOLDER = """
import pathlib, sys, time
from grpo_pl.runs.lock import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_run_is_refused_and_the_lock_dies_with_its_process(
    killed: Path, fit: Fit, refused: Refused
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, killed], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    before = sorted(killed.rglob("*"))
    sentence = refused(fit, *FOUR, "--trainer.default_root_dir", killed)
    assert f"{killed} is in use by process {holder.pid} on " in sentence
    assert sorted(killed.rglob("*")) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = Lock(killed)
    lock.take()
    lock.leave()
    assert not (killed / LOCK_FILE).exists()


def test_a_run_that_is_refused_leaves_no_folder(fit: Fit, refused: Refused, tmp_path: Path) -> None:
    refused(fit, "--trainer.default_root_dir", tmp_path / "new", "--data.minibatches", "3")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------ kills


def kill_test(*arguments: object) -> list[str]:
    command = [sys.executable, str(ROOT / "tools" / "kill_test.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


TWO_RANKS = ("--trainer.devices", "2", "--trainer.max_epochs", "4")


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("--forked",), id="default"),
        pytest.param(("--forked", *FOUR, "--checkpoint.every_n_epochs", "2"), id="all that moves"),
        pytest.param(("--forked", "--model.policy.dtype", "bfloat16"), id="masters"),
        pytest.param(
            (*TWO_RANKS, "--trainer.strategy", "ddp"),
            id="two ranks",
        ),
        pytest.param(
            (*TWO_RANKS, "--trainer.strategy", "fsdp2"),
            id="shards",
        ),
        pytest.param(
            (*TWO_RANKS, "--trainer.strategy", "fsdp2", "--model.policy.dtype", "bfloat16"),
            id="masters of shards",
        ),
    ],
)
def test_killed_runs_end_like_an_undisturbed_one(settings: tuple[str, ...]) -> None:
    assert kill_test("--kills", 3, *settings)[-1] == "3 of 3 identical"


def test_a_kill_loses_nothing() -> None:
    assert kill_test("--kills", 1, "--forked", "--trainer.max_epochs", 4)[-1] == "1 of 1 identical"


def test_rows_of_a_checkpoint_are_plain(whole: Path) -> None:
    """They are read with weights_only, and do not depend on metrics.csv."""
    state = saved(whole)["callbacks"]["MetricsTable"]["rows"]
    assert json.loads(json.dumps(state)) == state
    assert [row["iteration"] for row in state] == [row["iteration"] for row in rows(whole)]


def test_a_class_that_another_version_kept_elsewhere_is_no_change_of_settings() -> None:
    before = {"model": {"kl": {"class_path": "grpo_pl.regularizers.KLInLoss"}}}
    now = {"model": {"kl": {"class_path": "grpo_pl.losses.KLInLoss"}, "terms": None}}
    other = {"model": {"kl": {"class_path": "grpo_pl.losses.KLInReward"}}}
    foreign = {"model": {"kl": {"class_path": "mine.KLInLoss"}}}
    assert list(different(before, now)) == []
    assert list(different(before, other)) == list(different(before, foreign)) == ["model.kl.class_path"]
