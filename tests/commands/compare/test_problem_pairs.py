"""Differences that are paired over problems and seeds, from the verdicts that runs keep."""

import numpy as np
import pytest
from helpers.made_up import write_run, write_verdicts

from grpo_pl.commands.compare import compare, effects, table
from grpo_pl.commands.compare.paired import area_of
from grpo_pl.commands.compare.report.document import document
from grpo_pl.commands.compare.report.rendering import markdown
from grpo_pl.commands.compare.report.wording import verdict
from grpo_pl.commands.compare.runs import TOKENS, read_run
from grpo_pl.commands.compare.statistics import area_under, crossed, mean_interval

PROBLEMS, SEEDS = 200, (1, 2, 3, 4)


def solved(accuracy, *parts):
    """Verdicts with exactly this accuracy: easier problems are solved more often, whoever is asked."""
    noise = np.random.default_rng(parts)
    ease = np.linspace(2, -2, PROBLEMS) + noise.normal(0, 0.3, PROBLEMS)
    right = np.zeros((PROBLEMS, 1), dtype=int)
    right[np.argsort(-ease)[: round(accuracy * PROBLEMS)]] = 1
    return right


def write_study(folder, config, gains, *, seeds=SEEDS, without=(), salt=None):
    """Variants with a validation before training and two after it; accuracies scatter a little over seeds."""
    verdicts = {}
    for i, (variant, gain) in enumerate(gains.items()):
        for seed in seeds:
            wobble = np.random.default_rng([i, seed]).normal(0, 0.005)
            accuracies = [0.25, 0.25 + gain / 2, round((0.25 + gain + wobble) * PROBLEMS) / PROBLEMS]
            changes = {"data.group_size": 4 + i}
            run = write_run(
                folder / variant / f"seed-{seed}", config, seed=seed, accuracies=accuracies, changes=changes
            )
            verdicts[variant, seed] = [solved(a, i, seed, n) for n, a in enumerate(accuracies)]
            if (variant, seed) not in without:
                write_verdicts(run, verdicts[variant, seed], salt=(salt or {}).get((variant, seed), ""))
    return verdicts


@pytest.fixture(scope="module")
def pair(config, tmp_path_factory):
    """A study of two variants, and the verdicts of each run."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, write_study(folder, config, {"a": 0.3, "b": 0.34})


def test_the_difference_is_that_of_the_last_verdicts_over_problems_and_seeds(pair):
    folder, verdicts = pair
    (effect,) = compare(folder).effects
    last = {key: each[-1][:, 0].astype(float) for key, each in verdicts.items()}
    expected = crossed(np.array([last["b", s] - last["a", s] for s in SEEDS]))
    assert effect.on_problems
    assert effect.estimate.interval() == pytest.approx(expected.interval())
    assert float(effect.estimate.mean) == pytest.approx(effect.test.difference.mean)
    assert effect.p_holm == pytest.approx(float(expected.p_of()))


def test_areas_are_paired_over_problems_too(pair):
    folder, verdicts = pair
    x = np.arange(3.0)
    areas = {key: area_under(x, np.hstack(each).astype(float)) for key, each in verdicts.items()}
    comparison = compare(folder)
    expected = crossed(np.array([areas["b", s] - areas["a", s] for s in SEEDS]))
    assert comparison.effects[0].area == pytest.approx(expected.interval())
    of_base = mean_interval([float(areas["a", s].mean()) for s in SEEDS])
    assert comparison.results[0].area == pytest.approx(of_base)


def test_the_area_over_tokens_is_taken_along_the_tokens(config, tmp_path):
    run = read_run(write_run(tmp_path / "run", config, accuracies=[0.2, 0.4, 0.6]))
    tokens = np.cumsum([0.0, *run.measured(TOKENS)])
    assert area_of(run, "val/accuracy") == pytest.approx(0.4)
    assert area_of(run, "val/accuracy", TOKENS) == pytest.approx(
        float(area_under(tokens, np.array([0.2, 0.4, 0.6])))
    )
    frame = table(run.folder)
    assert frame["area/val/accuracy"][0] == pytest.approx(0.4)
    assert frame["area_by_tokens/val/accuracy"][0] == area_of(run, "val/accuracy", TOKENS)


@pytest.mark.parametrize("how", ["none", "one without", "other problems"])
def test_without_verdicts_on_the_same_problems_the_test_is_over_seeds_alone(how, config, tmp_path):
    seeds = (1, 2, 3)
    everyone = [(variant, seed) for variant in "ab" for seed in seeds]
    without = {"none": everyone, "one without": [("a", 3)], "other problems": []}[how]
    salt = {("b", 2): "other"} if how == "other problems" else {}
    write_study(tmp_path, config, {"a": 0.3, "b": 0.34}, seeds=seeds, without=without, salt=salt)
    comparison = compare(tmp_path)
    (effect,) = comparison.effects
    assert not effect.on_problems
    assert effect.estimate.interval() == pytest.approx(effect.test.difference)
    assert effect.p_holm == pytest.approx(effect.test.p)
    remarked = any("tested over seeds alone" in remark for remark in comparison.remarks)
    assert remarked == (how != "none")


def test_with_a_margin_each_difference_is_better_worse_equivalent_or_not_settled(config, tmp_path):
    write_study(tmp_path, config, {"base": 0.3, "up": 0.6, "down": 0.05, "same": 0.3}, seeds=(1, 2, 3))
    for margin, of_same in (
        (0.1, "equivalent within +-0.1"),
        (0.001, "not settled"),
        (None, "no difference shown"),
    ):
        comparison = compare(tmp_path, base="base", margin=margin)
        said = {e.result.group.name: verdict(comparison, e) for e in comparison.effects}
        assert said == {"up": "better", "down": "worse", "same": of_same}
        assert {e.p_equivalent is None for e in comparison.effects} == {margin is None}


def test_where_nobody_knows_which_way_is_better_it_is_higher_or_lower(config, tmp_path):
    for variant, cost in (("a", 1.0), ("b", 3.0)):
        for seed in (1, 2, 3):
            changes = {"data.group_size": 4 + int(cost)}
            write_run(tmp_path / variant / f"seed-{seed}", config, seed=seed, cost=cost, changes=changes)
    comparison = compare(tmp_path, metric="time/update_s")
    assert verdict(comparison, comparison.effects[0]) == "higher"


def test_intervals_of_all_at_once_are_wider_than_alone(config, tmp_path):
    write_study(tmp_path, config, {"base": 0.3, "b": 0.31, "c": 0.32, "d": 0.33}, seeds=(1, 2))
    for effect in compare(tmp_path, base="base").effects:
        assert effect.simultaneous == pytest.approx(effect.estimate.interval(1 - 0.05 / 3))
        assert effect.simultaneous.low < effect.estimate.interval().low


def test_pass_at_k_is_paired_by_the_samples_verdicts(config, tmp_path):
    noise, passed = np.random.default_rng(3), {}
    for variant in "ab":
        for seed in (1, 2, 3):
            run = write_run(tmp_path / variant / f"seed-{seed}", config, seed=seed, accuracies=[0.2, 0.3])
            bits = noise.integers(0, 2, (20, 4))
            write_verdicts(run, [bits, bits], name="val_sampled/accuracy")
            passed[variant, seed] = 1 - np.array([(4 - k) * (3 - k) / 12 for k in bits.sum(1)])  # pass@2
            text = (run / "metrics.csv").read_text()
            (run / "metrics.csv").write_text(text.replace("val/accuracy", "val/accuracy_pass@2"))
    (effect,) = compare(tmp_path, metric="val/accuracy_pass@2").effects
    differences = np.array([passed["b", s] - passed["a", s] for s in (1, 2, 3)])
    assert effect.estimate.interval() == pytest.approx(crossed(differences).interval())


def test_the_report_and_the_table_of_effects_say_all_of_it(pair):
    folder, _ = pair
    text = markdown(document(compare(folder, margin=0.2)), "pictures").replace("\\", "")
    for part in (
        *("95 % over problems and seeds", "95 %, all at once", "p, problems and seeds", "p, adjusted"),
        *("p, equivalence, adjusted", "probability of improvement", "interquartile mean"),
        *("area under the curve", "equivalent within +-0.2", "Shaffer's adjustment (comparisons: 1)"),
    ):
        assert part in text, part
    (row,) = effects(folder, margin=0.2).to_dict("records")
    assert (row["group"], row["base"], row["conclusion"]) == ("b", "a", "equivalent")
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert 0 <= row["improvement"] <= 1
    assert row["on_problems"]


def test_a_torn_or_foreign_file_of_verdicts_is_refused_in_a_sentence(config, tmp_path):
    write_study(tmp_path, config, {"a": 0.3, "b": 0.34}, seeds=(1, 2))
    with (tmp_path / "a" / "seed-1" / "verdicts.jsonl").open("a") as file:
        file.write('{"iteration": 2, "name": "val/accuracy", "of": "?", "samples": 1, "solved": "00"}\n')
    with pytest.raises(ValueError, match=r"seed-1/verdicts.jsonl is not a file that `fit` wrote"):
        compare(tmp_path)
