"""Every command answers every kind of mistake in one sentence, with exit code 2."""

from pathlib import Path

import pytest
from helpers.repository import ROOT
from helpers.run_results import said

from grpo_pl.__main__ import main
from grpo_pl.commands.table import COMMANDS

TINY = str(ROOT / "configs" / "tiny.yaml")
NEEDED = {
    "fit": ["--config", TINY],
    "validate": ["--config", TINY],
    "plan": ["--config", TINY],
    "submit": ["--nodes", "1", "--dry-run", "--config", TINY],
    "check-invariance": ["--config", TINY],
    "doctor": ["--config", TINY],
    "rollout": ["--out", "rollouts", "--config", TINY],
    "ablate": ["study.yaml"],
    "compare": ["runs"],
    "export": ["last.ckpt", "model"],
    "reward-data": ["pairs", "data", "--config", TINY],
    "tiny-model": ["tiny"],
    "bench": [],
}
"""What each is given besides the mistake."""
CONFIGURED = [name for name in COMMANDS if name not in ("compare", "export", "tiny-model")]
"""The commands that take the options of `fit`."""
OWN = {
    "plan": "--out",
    "submit": "--partition",
    "check-invariance": "--out",
    "doctor": "--out",
    "rollout": "--out",
    "ablate": "--slurm",
    "compare": "--metric",
    "export": "--pretrained",
    "reward-data": "--verifier",
    "tiny-model": "--seed",
    "bench": "--out",
}
"""An option of the command itself that needs a value."""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.yaml").write_text(f"base: {TINY}\nvariants: {{a: {{}}}}\n")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)


def answer(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([command, *NEEDED[command], *words])
    assert end.value.code == 2
    return said(capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--fooo" in answer(capsys, command, "--fooo=1").replace("option fooo", "option --fooo")


@pytest.mark.parametrize("command", OWN)
def test_a_missing_value_of_an_own_option_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"{command}: argument {OWN[command]}: expected one argument"
    assert expected in answer(capsys, command, OWN[command])


@pytest.mark.parametrize("command", CONFIGURED)
def test_a_missing_value_of_an_option_of_fit_is_named(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--pretrained" in answer(capsys, command, "--pretrained")


@pytest.mark.parametrize("command", CONFIGURED)
def test_a_config_that_does_not_exist_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file" in answer(capsys, command, "--config", "no/such.yaml")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_of_another_command_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = "--gpus-per-node=2" if command != "submit" else "--jobs=2"
    assert other.partition("=")[0].strip("-") in answer(capsys, command, other)


@pytest.mark.parametrize("command", ["bench", "check-invariance", "plan", "reward-data", "rollout"])
def test_a_config_of_another_job_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    answered = answer(capsys, command, "--job", "reward_model")
    assert f"job: {command} knows the job policy alone" in answered
