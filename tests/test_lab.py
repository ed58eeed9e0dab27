"""The model organism: its configs parse, and what its recipe makes is what the manual says of it."""

from pathlib import Path

import pytest
from helpers.commands import command
from helpers.repository import ROOT

from grpo_pl.runs.layout import read_metrics

LAB = ROOT / "configs" / "lab"
OVER = {
    "grpo": (),
    "pretrain": ("sft",),
    "reward_model": ("reward_model",),
    "process_reward_model": ("reward_model", "process_reward_model"),
    "learned_reward": ("lab/grpo",),
}
"""A config of the lab -> the configs that it lies over."""
OF_STUDIES = {"grpo", "learned_reward"}


@pytest.mark.parametrize("name", OVER)
def test_a_config_of_the_lab_parses_over_those_that_its_recipe_names(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [word for other in (*OVER[name], f"lab/{name}") for word in ("--config", other)]
    with pytest.raises(SystemExit) as done:
        command("fit", *configs, "--print_config")
    assert done.value.code == 0
    assert " ".join(configs) in " ".join((LAB / "organism.yaml").read_text().split()) or name in OF_STUDIES
    assert capsys.readouterr().err == ""


def test_every_config_of_the_lab_is_tested() -> None:
    assert {path.stem for path in LAB.glob("*.yaml")} == OVER.keys() | {"organism"}


@pytest.mark.slow
def test_the_recipe_makes_an_organism_that_rl_improves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes minutes: it is right greedily where nothing carries, and more often after GRPO."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        command("prepare", "lab/organism")
    assert not done.value.code
    grown = read_metrics(Path("runs/lab/pretraining/metrics.csv"))[-1]
    assert grown["val/accuracy"] == pytest.approx(0.3, abs=0.06)
    for job in ("reward_model", "process_reward_model"):
        assert read_metrics(Path(f"runs/lab/{job}/metrics.csv"))[-1]["val/accuracy"] > 0.7
    command("fit", "--config", "lab/grpo")
    before, *_, after = read_metrics(Path("runs/lab/grpo/metrics.csv"))
    assert after["val/accuracy"] > before["val/accuracy"] + 0.1
