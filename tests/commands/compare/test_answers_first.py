"""The first screen of a report: what was asked, what is settled, and what that rests on."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_up import write_run, write_verdicts
from helpers.repository import ROOT

from grpo_pl.commands.compare import compare
from grpo_pl.commands.compare.answers import Answer, answers, more_seeds, name_of
from grpo_pl.commands.compare.comparison import Comparison
from grpo_pl.commands.compare.costs import TIME
from grpo_pl.commands.compare.forest import forest, limits
from grpo_pl.commands.compare.report.document import document
from grpo_pl.commands.compare.report.glossary import glossary
from grpo_pl.commands.compare.report.question import first_sentence
from grpo_pl.commands.compare.report.rendering import html, markdown
from grpo_pl.commands.compare.statistics import Interval, mean_interval
from grpo_pl.commands.compare.statistics.power import power

SEEDS = range(1, 9)
FINAL = {"plain": 0.5, "alike": 0.502, "worse": 0.4, "noisy": 0.52}
NOISE = {"plain": 0.0, "alike": 0.004, "worse": 0.01, "noisy": 0.09}
COST = {"plain": 1.0, "alike": 1.0, "worse": 2.0, "noisy": 1.0}


@pytest.fixture(scope="module")
def folder(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which one variant is worse, one is equivalent, and one is not settled; a run was cut off."""
    out: Path = tmp_path_factory.mktemp("studies") / "answers"
    for i, name in enumerate(FINAL):
        for seed in SEEDS:
            wobble = NOISE[name] * float(np.random.default_rng([i, seed]).normal())
            accuracies = [0.25, FINAL[name] + wobble]
            cut = (name, seed) == ("alike", 8)
            write_run(
                out / name / f"seed-{seed}",
                config,
                seed=seed,
                accuracies=accuracies[: 1 if cut else 2],
                planned=1,
                changes={"data.group_size": 4 + i},
                cost=COST[name],
                problems=1000,
            )
    shutil.copyfile(ROOT / "configs" / "studies" / "lab_kl.yaml", out / "study.yaml")
    return out


@pytest.fixture(scope="module")
def comparison(folder: Path) -> Comparison:
    return compare(folder, "plain", margin=0.03)


def of(found: list[Answer]) -> dict[str, Answer]:
    return {name_of(answer): answer for answer in found}


def test_each_variant_is_a_question_with_a_verdict(comparison: Comparison) -> None:
    found = of(answers(comparison))
    assert {name: answer.verdict for name, answer in found.items()} == {
        "alike": "equivalent",
        "worse": "lower",
        "noisy": "not settled",
    }
    assert [found[name].seeds for name in ("alike", "worse")] == [7, 8]
    assert found["worse"].gain == comparison.effects[-1].simultaneous


def test_time_is_the_geometric_mean_of_ratios_of_pairs(comparison: Comparison) -> None:
    answer = of(answers(comparison))["worse"]
    ours, theirs = (
        {run.seed: TIME.of(run) for run in group.runs}
        for name in ("worse", "plain")
        for group in comparison.groups
        if group.name == name
    )
    logs = [math.log((ours[seed] or 0) / (theirs[seed] or 1)) for seed in ours]
    expected = [math.exp(end) for end in mean_interval(logs, 1 - 0.05 / 3)]
    assert answer.time == pytest.approx(expected)
    assert answer.memory is not None
    assert answer.memory.mean > 1


def test_only_what_is_not_settled_needs_more_seeds(comparison: Comparison) -> None:
    found = of(answers(comparison))
    assert found["worse"].more_seeds is None
    assert found["alike"].more_seeds is None
    assert 1 <= (found["noisy"].more_seeds or 0) < 1000


def test_more_seeds_settle_a_difference_with_the_power_that_the_t_test_has_with_them() -> None:
    """Without a margin and without problems it is the power analysis of a difference as large as measured."""
    values = np.random.default_rng(3).normal(0.0, 0.1, 10)
    values += 0.04 - values.mean()
    spread = float(values.std(ddof=1))
    interval = mean_interval(values.tolist())
    more = more_seeds(values.tolist(), interval, None, many=1)
    assert more is not None
    assert power(0.04, spread, 10 + more) == pytest.approx(0.8, abs=0.02)


def test_more_seeds_do_not_settle_what_problems_leave_open() -> None:
    values = [0.01, 0.02, 0.0, 0.015, 0.005, 0.01]
    wide = Interval(0.01, -0.05, 0.07)  # of few problems: seeds alone would give a twentieth of it
    assert more_seeds(values, wide, 0.03, many=1) is None
    assert more_seeds([0.01] * 4, wide, 0.03, many=1) is None


def test_the_look_of_a_sequential_study_decides_in_place_of_the_fixed_number(comparison: Comparison) -> None:
    looks = {"worse": Interval(-0.1, -0.3, 0.1), "alike": Interval(0.0, -0.01, 0.01)}
    found = of(answers(comparison, looks))
    assert (found["worse"].verdict, found["worse"].gain) == ("not settled", looks["worse"])
    assert found["alike"].verdict == "equivalent"
    assert found["noisy"] == of(answers(comparison))["noisy"]


def test_the_first_words_are_the_question_the_measure_the_runs_and_what_is_missing(folder: Path) -> None:
    report = document(compare(folder, "plain", margin=0.03), "answers")
    assert report.question.startswith("The KL to the reference: none, in the loss")
    assert report.headline == "3 questions: 1 makes a difference, 1 does not matter, 1 is not settled."
    assert report.failed == "1 of 32 runs did not come to its end: it is in no number here."
    measured, rests = report.basis
    assert measured == (
        "Measured is validation accuracy: the share of 1,000 held-out problems solved, "
        "after 1 iteration of training."
    )
    assert rests.startswith("Rests on 31 finished runs: 4 variants, 7 to 8 seeds each.")
    alike = next(answer for answer in report.answers if answer.name == "alike instead of plain")
    assert alike.verdict == "does not matter"
    assert "smaller than 0.03, the least that was declared to matter" in alike.text
    assert any("KL: how far" in line for line in report.reading)


def test_both_forms_have_the_answers_before_any_table_and_pictures_of_effects_before_curves(
    folder: Path,
) -> None:
    report = document(compare(folder, "plain", margin=0.03), "answers")
    page, text = html(report), markdown(report, "pictures")
    positions = [
        page.index(part)
        for part in ('class="question"', 'class="failed"', "3 questions", "does not matter</span>")
    ]
    positions += [page.index(part) for part in ('id="effects"', 'id="learning-curves"', "<table")]
    assert positions == sorted(positions)
    parts = ["3 questions", "does not matter.", "## Effects", "## Learning curves", "| --- |"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)


def test_without_a_margin_the_report_says_how_to_conclude_that_there_is_no_difference(folder: Path) -> None:
    report = document(compare(folder, "plain"), "answers")
    assert any("declare the largest difference that does not matter" in line for line in report.reading)
    assert report.headline == "3 questions: 1 makes a difference, 2 are not settled."


def test_the_forest_has_three_panels_and_a_panel_shows_what_it_draws(comparison: Comparison) -> None:
    titles = [picture.title for picture in forest(comparison, answers(comparison))]
    assert titles == ["validation accuracy: change", "training time: change", "peak memory: change"]
    low, high = limits([Interval(0.1, -0.2, 0.4), Interval(0.1, -math.inf, math.inf), None], 0.0, 0.3)
    assert (low, high) == pytest.approx((-0.3 - 0.06 * 0.7, 0.4 + 0.06 * 0.7))


def test_factors_have_ratios_of_costs_and_interactions_have_a_heading_of_their_own(
    config: dict[str, Any], tmp_path: Path
) -> None:
    right = np.arange(200)[:, None]
    for critic, kl in (("without", "k3"), ("without", "none"), ("with", "k3"), ("with", "none")):
        for seed in (1, 2, 3, 4):
            changes = {"data.group_size": 4 + (critic == "with"), "data.update_epochs": 1 + (kl == "none")}
            solved = 100 + 20 * (critic == "with") + seed
            run = write_run(
                tmp_path / f"critic={critic},kl={kl}" / f"seed-{seed}",
                config,
                seed=seed,
                accuracies=[0.25, solved / 200],
                changes=changes,
                models=1 + (critic == "with"),
            )
            write_verdicts(run, [right < 50, right < solved])
    comparison = compare(tmp_path, "critic=without,kl=k3")
    critic, kl, both = answers(comparison)
    assert (critic.kind, both.kind) == ("effect", "interaction")
    assert critic.memory is not None
    assert critic.memory.mean == pytest.approx((4.2 + 1.7 * 2) / (4.2 + 1.7))
    assert math.isinf(critic.memory.high)  # it does not vary over seeds: a point without an interval
    assert kl.memory is not None
    assert kl.memory.mean == pytest.approx(1)
    page = html(document(comparison))
    assert re.search(r"<h3>What two factors do together.*critic \(with\) and kl \(none\)", page, re.DOTALL)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# Which one? It is told.\n#   python -m x\nbase: y\n", "Which one?"),
        (
            "# What configs/ppo.yaml brings,\n# against the old. Then more.\n",
            "What configs/ppo.yaml brings, against the old.",
        ),
        ("# no full stop\nbase: x\n", "no full stop"),
        ("base: x  # not this\n", ""),
        ("", ""),
    ],
)
def test_the_question_is_the_first_sentence_of_the_comment_at_the_top(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_every_study_of_ours_begins_with_its_question() -> None:
    files = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
    assert files
    assert [path.name for path in files if len(first_sentence(path.read_text(encoding="utf-8"))) < 20] == []


def test_a_word_is_explained_where_it_stands_and_nowhere_else() -> None:
    assert glossary(["no_critic", "update_epochs=4"]).startswith("critic: a model that predicts")
    assert "epochs:" in glossary(["update_epochs=4"])
    assert glossary(["criticism", "lr"]) == ""
