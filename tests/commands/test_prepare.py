"""Recipes: what studies begin with is made by commands, in their order and once."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import Refused, command
from helpers.repository import ROOT

from grpo_pl.commands.prepare import follow, read_recipe
from grpo_pl.config.files import read_config
from grpo_pl.system.refusal import ConfigError


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_commands_run_in_their_order_and_only_where_their_product_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"a/model.safetensors": "tiny-model a --seed 1", "b": "tiny-model b --sizes '{hidden_size: 32}'"}
    steps = read_recipe(recipe, "recipe")
    assert follow(steps) == 0
    assert '"hidden_size": 32' in (tmp_path / "b" / "config.json").read_text()
    written = (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns
    said = capsys.readouterr().out
    assert "preparing a/model.safetensors (1 of 2): tiny-model a --seed 1" in said
    assert follow(steps) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns == written


def test_a_command_that_fails_ends_the_recipe_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    steps = read_recipe({"a": "tiny-model full", "b": "tiny-model b"}, "recipe")
    assert follow(steps) == 2
    assert "a could not be made: exit code 2" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_command_that_makes_something_else_is_named() -> None:
    with pytest.raises(ConfigError, match="a: the command `tiny-model b` did not make it"):
        follow(read_recipe({"a": "tiny-model b"}, "recipe"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: fitt --config x", "recipe recipe.yaml: a: expected a command of grpo_pl.*Did you mean fit"),
        ("a: [fit]", r"a: expected a command of grpo_pl with its options.*got \['fit'\]"),
        ("a: ''", "a: expected a command"),
        ("a: fit 'b", "a: No closing quotation in"),
        ("[a]", "expected settings such as"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, message: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    answer = refused(command, "prepare", "recipe.yaml")
    assert re.search(message, answer)


def test_the_organisms_recipe_is_one() -> None:
    path = ROOT / "configs" / "lab" / "organism.yaml"
    assert len(read_recipe(read_config(str(path)), "recipe")) == 7


def test_sigterm_reaches_the_command_and_the_next_call_goes_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "tiny/model.safetensors: tiny-model tiny\n"
        f"run/ended.json: fit --config {ROOT}/configs/tiny.yaml --pretrained tiny --trainer.max_epochs 60 "
        "--trainer.default_root_dir run --trainer.check_val_every_n_epoch 60\n"
    )
    words = [sys.executable, "-m", "grpo_pl", "prepare", "recipe.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment)
    metrics = tmp_path / "run" / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "run" / "ended.json").exists()
