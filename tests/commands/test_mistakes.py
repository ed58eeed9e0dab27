"""Every command answers every kind of mistake in one sentence, with exit code 2."""

import re
from itertools import chain
from pathlib import Path

import pytest
from helpers.commands import Refused, command
from helpers.repository import ROOT

from grpo_pl.commands.options import OF_COMMANDS, OF_FIT
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
    "filter-prompts": ["kept", "data.jsonl", "--config", TINY],
    "reward-data": ["pairs", "data", "--config", TINY],
    "tiny-model": ["tiny"],
    "prepare": ["recipe.yaml"],
    "bench": [],
}
"""What each is given besides the mistake."""
CONFIGURED = [name for name in COMMANDS if name not in ("compare", "export", "prepare", "tiny-model")]
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
    "filter-prompts": "--low",
    "reward-data": "--verifier",
    "tiny-model": "--seed",
    "bench": "--out",
}
"""An option of the command itself that needs a value."""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.yaml").write_text(f"base: {TINY}\nvariants: {{a: {{}}}}\n")
    (tmp_path / "recipe.yaml").write_text("runs: tiny-model runs\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "iteration-0001.parquet").touch()
    monkeypatch.chdir(tmp_path)


def given(name: str, *words: str) -> None:
    """A command with what it needs, and with a mistake."""
    command(name, *NEEDED[name], *words)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_named(name: str, refused: Refused) -> None:
    assert "--fooo" in refused(given, name, "--fooo=1").replace("option fooo", "option --fooo")


@pytest.mark.parametrize("name", OWN)
def test_a_missing_value_of_an_own_option_is_named(name: str, refused: Refused) -> None:
    expected = f"{name}: argument {OWN[name]}: expected one argument"
    assert expected in refused(given, name, OWN[name])


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_missing_value_of_an_option_of_fit_is_named(name: str, refused: Refused) -> None:
    assert "--pretrained" in refused(given, name, "--pretrained")


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_config_that_does_not_exist_is_named(name: str, refused: Refused) -> None:
    assert "there is no file" in refused(given, name, "--config", "no/such.yaml")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_of_another_command_is_named(name: str, refused: Refused) -> None:
    other = "--gpus-per-node=2" if name != "submit" else "--jobs=2"
    assert other.partition("=")[0].strip("-") in refused(given, name, other)


@pytest.mark.parametrize("name", ["bench", "check-invariance", "doctor", "plan"])
@pytest.mark.parametrize("file", ["no/such/folder/x.json", "runs"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    name: str, file: str, refused: Refused
) -> None:
    assert f"{name}: argument --out: {file} cannot be written: name a file in" in refused(
        given, name, "--out", file
    )


FOLDERS = {
    "ablate": (("study.yaml", "--out", "study.yaml/out"), "--out"),
    "compare": (("runs", "--out", "study.yaml/out"), "--out"),
    "export": (("study.yaml", "study.yaml/out"), "out"),
    "reward-data": (("pairs", "study.yaml/out", "--config", TINY), "out"),
    "rollout": (("--out", "study.yaml/out", "--config", TINY), "--out"),
    "tiny-model": (("study.yaml/out",), "folder"),
}
"""Command -> its words, of which one names a folder below a file, and the name of that option."""


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(name: str, refused: Refused) -> None:
    words, option = FOLDERS[name]
    answer = refused(command, name, *words)
    assert f"{name}: {option}=study.yaml/out: " in answer
    assert "study.yaml is a file; name a folder" in answer


@pytest.mark.parametrize("name", CONFIGURED)
def test_an_option_of_another_command_is_answered_by_that_command(name: str, refused: Refused) -> None:
    answer = refused(given, name, "--untied")
    assert answer == "grpo_pl: error: there is no option untied here: --untied belongs to `tiny-model`"


def test_the_table_of_options_is_that_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for name in OF_COMMANDS:
        with pytest.raises(SystemExit):
            command(name, "--help")
        options = re.findall(r"^ +--([a-z-]+)(?:, --([a-z-]+))?", capsys.readouterr().out, re.MULTILINE)
        assert sorted(filter(None, chain(*options))) == sorted(OF_COMMANDS[name]), name
    assert OF_COMMANDS.keys() == COMMANDS.keys() - {"fit", "validate"}


def test_the_options_that_fit_has_too_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    command("fit", "--help")
    of_fit = set(re.findall(r"--([a-z_]+)[ \]]", capsys.readouterr().out))
    assert of_fit & set(chain(*OF_COMMANDS.values())) == set(OF_FIT)


@pytest.mark.parametrize("name", ["fit", "validate"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_a_word_after_help_is_refused(name: str, option: str, refused: Refused) -> None:
    assert f"{name}: {option} takes no value, got extra" in refused(command, name, option, "extra")


@pytest.mark.parametrize("name", ["bench", "check-invariance", "plan", "reward-data", "rollout"])
def test_a_config_of_another_job_is_refused(name: str, refused: Refused) -> None:
    answered = refused(given, name, "--job", "reward_model")
    assert f"job: {name} knows the job policy alone" in answered
