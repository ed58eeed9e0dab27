"""The report on a factorial study: effects of factors first, from the names of its groups."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import Refused, command
from helpers.made_up import write_run, write_verdicts

from grpo_pl.commands.compare import compare
from grpo_pl.commands.compare.answers import effect_name
from grpo_pl.commands.compare.cells import cell_levels, cell_name
from grpo_pl.commands.compare.factors import effects_of_factors
from grpo_pl.commands.compare.report.document import document
from grpo_pl.commands.compare.report.wording import factor_verdict
from grpo_pl.commands.compare.statistics import Interval, crossed
from grpo_pl.commands.compare.statistics.factorial import FactorEffect, Step

BASE = "critic=value,kl=k3"
VALUES = {
    BASE: {"1": 0.50, "2": 0.52, "3": 0.51},
    "critic=value,kl=none": {"1": 0.50, "2": 0.53, "3": 0.51},
    "critic=none,kl=k3": {"1": 0.40, "2": 0.42, "3": 0.42},
    "critic=none,kl=none": {"1": 0.39, "2": 0.42, "3": 0.42},
}
CHANGES: dict[str, dict[str, Any]] = {
    "critic=value": {},
    "critic=none": {"data.update_epochs": 2},
    "kl=k3": {},
    "kl=none": {"model.kl": None},
}


@pytest.fixture(scope="module")
def factorial(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up study of two factors in which the critic matters and the KL does not."""
    out: Path = tmp_path_factory.mktemp("studies") / "factorial"
    for name, values in VALUES.items():
        changes = {key: value for part in name.split(",") for key, value in CHANGES[part].items()}
        for seed, value in values.items():
            folder = out / name / f"seed-{seed}"
            write_run(folder, config, seed=int(seed), accuracies=[0.25, value], changes=changes)
    return out


def test_the_name_of_a_cell_holds_its_levels_and_other_names_hold_none() -> None:
    levels = {"critic": "none", "epochs": "4"}
    assert cell_name(levels) == "critic=none,epochs=4"
    assert cell_levels("critic=none,epochs=4") == levels
    for other in ("grpo", "a=b=c", "a=b,c", "a=b (lr=0.1)", "a=b (2)", ""):
        assert cell_levels(other) == {}


def test_the_report_on_a_factorial_study_begins_with_its_effects(factorial: Path) -> None:
    report = document(compare(factorial, BASE, margin=0.05))
    section = next(s for s in report.sections if s.tables)
    assert section.title == "Tests of the effects"
    rows = {row[0]: dict(zip(section.tables[0].header, row, strict=True)) for row in section.tables[0].rows}
    assert list(rows) == ["critic: none instead of value", "kl: none instead of k3", "critic none x kl none"]
    assert rows["critic: none instead of value"]["difference"] == "-0.100"
    assert rows["critic: none instead of value"]["verdict"] == "lower"
    assert rows["kl: none instead of k3"]["verdict"] == "within +-0.05"
    critic, kl, both = report.answers
    assert (critic.verdict, kl.verdict, both.interaction) == ("worse", "does not matter", True)
    assert critic.text.startswith("It lowers validation accuracy by 0.100 (95 % interval -0.1")
    assert any("Declared: a difference below 0.05 does not matter" in note for note in section.notes)


def test_without_a_margin_an_effect_that_is_not_shown_is_not_called_small(factorial: Path) -> None:
    found = compare(factorial, BASE)
    assert [factor_verdict(e, None) for e in found.factors] == ["lower", *["no difference shown"] * 2]


def test_the_command_prints_the_effects_and_writes_them_as_the_study_declares(
    factorial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    study = shutil.copytree(factorial, tmp_path / "study")
    factors = "{critic: {value: {}, none: {}}, kl: {k3: {}, none: {}}}"
    (study / "study.yaml").write_text(f"metric: val/accuracy\nmargin: 0.05\nfactors: {factors}\n")
    command("compare", study, "--out", tmp_path)
    printed = capsys.readouterr().out
    assert printed.index("Tests of the effects") < printed.index("What differs")
    assert "critic: none instead of value" in printed, "the base is the first level, not the first folder"
    assert "within +-0.05" in printed
    text = (tmp_path / "report.md").read_text()
    assert text.index("## Effects") < text.index("## What differs")
    assert "<h2>Effects</h2>" in (tmp_path / "report.html").read_text()


def test_a_margin_of_nothing_is_refused(factorial: Path, refused: Refused) -> None:
    assert "compare: --margin=0.0: expected more than 0" in refused(
        command, "compare", factorial, "--margin", 0
    )


def test_only_seeds_that_all_combinations_have_are_in_the_effects() -> None:
    values = VALUES | {"critic=none,kl=none": {"1": 0.39, "3": 0.41, "4": 0.4}}
    effects, remarks = effects_of_factors(values, None)
    assert [len(effect.by_seed) for effect in effects] == [2, 2, 2]
    assert remarks == ["Seed 2, 4: not all combinations have it, so it is not in the effects of factors."]


def test_a_combination_that_was_not_run_is_named() -> None:
    values = {name: seeds for name, seeds in VALUES.items() if name != "critic=none,kl=none"}
    effects, remarks = effects_of_factors(values, None)
    assert effects == []
    assert remarks == ["critic=none,kl=none was not run: without it there are no effects of factors."]


def test_a_group_that_is_no_combination_is_left_out_and_named() -> None:
    effects, remarks = effects_of_factors(VALUES | {"grpo": {"1": 0.9}}, None)
    assert len(effects) == 3
    assert remarks == ["grpo is no combination of the factors critic, kl."]


def test_variants_one_at_a_time_have_no_effects_of_factors() -> None:
    assert effects_of_factors({"grpo": {"1": 0.5}, "no_kl": {"1": 0.4}}, None) == ([], [])


@pytest.mark.parametrize(
    ("low", "high", "p", "margin", "verdict"),
    [
        (0.01, 0.2, 0.01, None, "higher"),
        (-0.2, -0.01, 0.01, None, "lower"),
        (-0.2, 0.01, 0.2, None, "no difference shown"),
        (-0.2, 0.01, 0.2, 0.1, "not settled"),
        (-0.09, 0.01, 0.2, 0.1, "within +-0.1"),
        (0.01, 0.09, 0.01, 0.1, "higher, within +-0.1"),
        (0.01, 0.2, 0.01, 0.1, "higher"),
        (-0.1, -0.1, None, 0.1, "every seed alike: no test"),
    ],
)
def test_what_is_settled_of_an_effect(
    low: float, high: float, p: float | None, margin: float | None, verdict: str
) -> None:
    interval = Interval((low + high) / 2, low, high)
    steps = (Step("critic", "none", "value"), Step("kl", "none", "k3"))
    effect = FactorEffect(steps, (low, high), interval, interval, p, p)
    assert factor_verdict(effect, margin) == verdict
    assert effect_name(effect.steps) == "critic none x kl none"


def test_with_verdicts_effects_of_factors_are_over_problems_and_seeds(
    config: dict[str, Any], tmp_path: Path
) -> None:
    noise, solved = np.random.default_rng(0), {}
    for name in VALUES:
        changes = {key: value for part in name.split(",") for key, value in CHANGES[part].items()}
        for seed in (1, 2):
            bits = noise.permutation(np.arange(200) < noise.integers(60, 140))[:, None].astype(int)
            solved[name, seed] = bits[:, 0].astype(float)
            folder = tmp_path / name / f"seed-{seed}"
            write_run(folder, config, seed=seed, accuracies=[0.2, float(bits.mean())], changes=changes)
            write_verdicts(folder, [bits, bits])
    critic, kl, both = compare(tmp_path, BASE).factors
    neither, no_kl, no_critic, alone = ([solved[name, seed] for seed in (1, 2)] for name in VALUES)
    by_hand = {
        critic: (np.add(no_critic, alone) - np.add(neither, no_kl)) / 2,
        kl: (np.add(no_kl, alone) - np.add(neither, no_critic)) / 2,
        both: np.add(neither, alone) - np.add(no_kl, no_critic),
    }
    for effect, differences in by_hand.items():
        assert effect.interval == pytest.approx(crossed(differences).interval())
        assert effect.p == pytest.approx(float(crossed(differences).p_of()))
