"""Configs by name, from anywhere; a file of the same name comes first."""

from pathlib import Path

import pytest
from helpers.commands import Refused
from helpers.repository import ROOT

from grpo_pl.commands.ablate.study import read_study
from grpo_pl.config.by_name import own_config, with_config_files

CONFIGS = ROOT / "configs"
QUICKSTART, CISPO = str(CONFIGS / "quickstart.yaml"), str(CONFIGS / "ablations" / "cispo.yaml")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("option", [["--config", "{}"], ["--config={}"], ["-c", "{}"], ["-c={}"], ["-c{}"]])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("quickstart", QUICKSTART),
        ("quickstart.yaml", QUICKSTART),
        ("ablations/cispo", CISPO),
        ("configs/ablations/cispo.yaml", CISPO),
        ("./configs/quickstart.yaml", QUICKSTART),
    ],
)
def test_a_name_means_a_config_of_grpo_pl(option: list[str], name: str, file: str) -> None:
    words = ["--data.seed", "1", *(part.format(name) for part in option), "--model.kl", "null"]
    expected = ["--data.seed", "1", *(part.format(file) for part in option), "--model.kl", "null"]
    assert list(with_config_files(words)) == expected


def test_a_file_comes_first_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    assert list(with_config_files(["-c", "quickstart"])) == ["-c", QUICKSTART]
    (tmp_path / "quickstart.yaml").touch()
    assert list(with_config_files(["-c", "quickstart.yaml"])) == ["-c", "quickstart.yaml"]


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "{data: {seed: 3}}"],
        ["--config", "."],
        ["--config"],
        ["--config", "--print_config"],
        ["--model.loss", "quickstart", "--data.config=tiny"],
        ["--", "--config", "tiny"],
        ["--config", "a\0b"],
        ["--config", "a" * 5000],
    ],
)
def test_what_is_no_name_of_a_file_stays_as_it_is(words: list[str]) -> None:
    assert list(with_config_files(words)) == words


@pytest.mark.parametrize("name", ["../pyproject.toml", "configs/../../x", "/quickstart", "", "."])
def test_nothing_outside_of_configs_is_meant_by_a_name(name: str) -> None:
    assert own_config(name) is None


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("quikstart", "quickstart"),
        ("ablations/cipso", "ablations/cispo"),
        ("configs/tinny.yaml", "configs/tiny.yaml"),
        ("mien.yaml", "mine.yaml"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    wrong: str, right: str, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "mine.yaml").touch()
    sentence = refused(lambda: list(with_config_files(["--config", wrong])))
    assert sentence == f"grpo_pl: error: config: there is no file {wrong}. Did you mean {right}?"


def test_a_study_names_configs_too_and_its_own_files_come_first(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").touch()
    path = tmp_path / "study.yaml"
    path.write_text("base: [quickstart, tiny.yaml]\nvariants: {grpo: {}, cispo: ablations/cispo}")
    variants = read_study(path).variants
    assert variants["cispo"] == [Path(QUICKSTART), tmp_path / "tiny.yaml", Path(CISPO)]
