"""Which runs repeat each other, what differs between those that do not, and what they are called."""

from pathlib import Path

import pytest
from helpers.made_up import write_run

from grpo_pl.commands.compare import compare, history, table
from grpo_pl.commands.compare.differences import differences, shown
from grpo_pl.commands.compare.groups import group_runs
from grpo_pl.commands.compare.runs import read_run, read_runs


def test_a_component_of_another_class_is_one_difference_with_what_is_not_its_default():
    base = {
        "model": {"advantage": {"class_path": "grpo_pl.advantages.GroupRelative", "init_args": {"eps": 1e-4}}}
    }
    gae = {"class_path": "grpo_pl.advantages.GAE", "init_args": {"lam": 0.9, "gamma": 1.0}}
    assert list(differences(base, {"model": {"advantage": gae}})) == [
        ("model.advantage", "GroupRelative", "GAE(lam=0.9)")
    ]


def test_an_argument_of_the_same_class_is_a_difference_under_its_own_name():
    def loss(high):
        return {"loss": {"class_path": "grpo_pl.losses.ClippedSurrogate", "init_args": {"clip_high": high}}}

    assert list(differences(loss(0.2), loss(0.28))) == [("loss.clip_high", "0.2", "0.28")]
    assert list(differences(loss(0.2), loss(0.2))) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-5, "1e-05"),
        ([1, "a"], "[1, a]"),
        ({"rounds": 3}, "{rounds: 3}"),
        ({"class_path": "no.such.Class", "init_args": {"x": None}}, "Class(x=null)"),
    ],
)
def test_values_are_shown_as_a_command_line_says_them(value, text):
    assert shown(value) == text


def test_runs_that_differ_in_seeds_folders_and_what_one_sees_are_one_group(config, tmp_path):
    for seed, changes in (
        (1, {"samples": None, "ckpt_path": "last"}),
        (2, {"trainer.logger": True, "checkpoint.every_n_epochs": 5}),
    ):
        write_run(tmp_path / f"run{seed}", config, seed=seed, changes=changes)
    groups = group_runs(read_runs([tmp_path / "run1", tmp_path / "run2"]))
    assert [(group.name, list(group.finished)) for group in groups] == [("base", ["1", "2"])]


def test_a_path_through_the_folder_of_the_own_seed_is_the_same_for_each_seed(config, tmp_path):
    for seed in (1, 2):
        at = {"data.engine.init_args.pretrained": f"{tmp_path}/rollouts/seed-{seed}/a.parquet"}
        write_run(tmp_path / "replay" / f"seed-{seed}", config, seed=seed, changes=at)
    assert len(group_runs(read_runs([tmp_path]))) == 1


def test_a_model_that_is_named_for_all_is_one_difference(config, tmp_path):
    for name in ("small", "large"):
        everywhere = {"pretrained": name, "data.pretrained": name, "model.policy.init_args.pretrained": name}
        write_run(tmp_path / name, config, changes=everywhere)
    *_, other = group_runs(read_runs([tmp_path / "small", tmp_path / "large"]))
    assert other.differences == (("pretrained", "small", "large"),)


def test_groups_are_called_by_what_differs_from_the_base(config, tmp_path):
    changes = {
        "a": {},
        "b": {"data.group_size": 8},
        "c": {"data.group_size": 8, "model.kl": None, "model.aggregation.class_path": "SequenceMean"},
    }
    for name, change in changes.items():
        write_run(tmp_path / name, config, changes=change)
    runs = read_runs([tmp_path / name for name in changes])
    assert [g.name for g in group_runs(runs)] == [
        "base",
        "group_size=8",
        "aggregation=SequenceMean, kl=null +1",
    ]
    again = group_runs(runs, base=str(tmp_path / "b"))
    assert again[0].runs[0].folder == tmp_path / "b"
    assert again[1].name == "group_size=4"


def test_groups_of_a_study_are_called_by_their_variant_also_where_nothing_differs(config, tmp_path):
    for variant in ("one", "two"):
        write_run(tmp_path / variant / "seed-1", config)
    assert [g.name for g in group_runs(read_runs([tmp_path]))] == ["one", "two"]


def test_seeds_of_a_variant_with_other_settings_are_a_group_of_their_own(config, tmp_path):
    write_run(tmp_path / "one" / "seed-1", config, seed=1)
    write_run(tmp_path / "one" / "seed-2", config, seed=2, changes={"data.group_size": 8})
    assert [g.name for g in group_runs(read_runs([tmp_path]))] == ["one", "one (group_size=8)"]


def test_seeds_stand_in_the_order_of_their_numbers_and_older_runs_are_left_out(config, tmp_path):
    for seed in (10, 9):
        write_run(tmp_path / "one" / f"seed-{seed}", config, seed=seed)
    write_run(tmp_path / "one" / "seed-9.1", config, seed=9)  # where `fit` keeps the run before
    assert [run.seed for run in read_runs([tmp_path])] == ["9", "10"]


@pytest.mark.parametrize(
    ("changes", "rows", "problem"),
    [
        ({}, 3, ""),
        ({"trainer.max_epochs": 5}, 3, "ended after iteration 2 of 5"),
        ({"trainer.max_epochs": 5, "trainer.max_steps": 6}, 3, ""),  # three steps an iteration
        ({"trainer.max_epochs": 5, "trainer.max_steps": 7}, 3, "ended after iteration 2 of 5"),
    ],
)
def test_a_run_is_finished_where_its_config_ends(changes, rows, problem, config, tmp_path):
    folder = write_run(tmp_path / "run", config, accuracies=[0.5] * rows, changes=changes)
    assert read_run(folder).problem == problem


def test_a_run_without_a_row_never_validated(config, tmp_path):
    (write_run(tmp_path / "run", config) / "metrics.csv").unlink()
    assert "before its first validation" in read_run(tmp_path / "run").problem


def test_the_table_has_a_row_a_run_and_the_history_one_an_iteration(study):
    runs, rows = table(study, base="base"), history(study)
    assert len(runs) == 13  # three variants of four seeds, and one that never started
    assert list(runs.groupby("group")["finished"].sum()) == [4, 3, 4]
    assert set(runs["model.kl"].dropna()) == {"KLInLoss(coefficient=0.01)", "null"}
    base = runs[(runs["group"] == "base") & (runs["seed"] == "2")].iloc[0]
    mine = rows[(rows["group"] == "base") & (rows["seed"] == "2")]
    assert base["val/accuracy"] == mine["val/accuracy"].iloc[-1]
    assert base["cost/tokens"] == mine["tokens"].iloc[-1] == mine["rollout/tokens"].sum()
    assert base["cost/training"] == pytest.approx(mine["time/iteration_s"].sum())


def test_pairs_are_by_seed_and_missing_ones_are_said(config, tmp_path):
    values = {("a", 1): 0.5, ("a", 2): 0.6, ("a", 3): 0.7, ("b", 3): 0.75, ("b", 2): 0.7, ("b", 4): 0.1}
    for (variant, seed), value in values.items():
        write_run(tmp_path / variant / f"seed-{seed}", config, seed=seed, accuracies=[0.2, value])
    (effect,) = compare(tmp_path).effects
    assert effect.pairs == ("2", "3")
    assert effect.alone == ("1", "4")
    assert effect.test.difference.mean == pytest.approx((0.1 + 0.05) / 2)
    assert any("Seed 1, 4: only b or only a" in remark for remark in compare(tmp_path).remarks)


def test_an_accuracys_interval_ends_where_accuracies_do(config, tmp_path):
    for seed, value in enumerate((0.1, 0.7, 0.75)):
        write_run(tmp_path / "a" / f"seed-{seed}", config, seed=seed, accuracies=[0.2, value])
    (accuracy,) = compare(tmp_path).results
    assert accuracy.over_seeds[1:] == (0.0, 1.0)
    (reward,) = compare(tmp_path, metric="rollout/reward").results
    assert reward.over_problems is None
    assert reward.over_seeds.low < 0 or reward.over_seeds.high > 1


def test_runs_that_did_not_end_are_named_and_in_no_mean(study):
    comparison = compare(study, base="base")
    critic = next(r for r in comparison.results if r.group.name == "critic")
    assert list(critic.by_seed) == ["1", "2", "3"]
    said = " ".join(comparison.remarks)
    assert "critic, seed 4, ended after iteration 1 of 2" in said
    assert "critic, seed 5, has no config.yaml: it never started" in said


def test_a_lower_accuracy_is_found_and_an_equal_one_is_not(study):
    effects = {e.result.group.name: e for e in compare(study, base="base").effects}
    assert effects["critic"].p_holm < 0.05
    assert effects["critic"].test.difference.high < 0
    assert effects["no-kl"].p_holm > 0.05
    assert compare(study).problems == 200


def bad_runs(config: dict, tmp_path: Path) -> dict[str, tuple[list[Path], str]]:
    """Name -> paths that are refused, and the sentence."""
    a = write_run(tmp_path / "a", config)
    twin = write_run(tmp_path / "twin", config)
    other_set = write_run(tmp_path / "set", config, changes={"data.val.init_args.held_out": 9})
    torn = write_run(tmp_path / "torn", config)
    (torn / "metrics.csv").write_text("iteration,val/accuracy\n0,0.5\n1,o.5\n")
    no_yaml = write_run(tmp_path / "no_yaml", config)
    (no_yaml / "config.yaml").write_text("- nothing\n")
    no_config = write_run(tmp_path / "no_config", config)
    (no_config / "config.yaml").unlink()
    unstarted = tmp_path / "study" / "one" / "seed-1"
    unstarted.mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    return {
        "missing": ([tmp_path / "nowhere"], "there is no folder"),
        "no run": ([tmp_path / "empty"], "holds no run: expected config.yaml and metrics.csv"),
        "the same seed": ([a, twin], "have the same settings and the same seed .1.: name one"),
        "validation sets": ([a, other_set], "have different data.val"),
        "torn": ([torn], "metrics.csv is not a table that `fit` wrote"),
        "no config of fit": ([no_yaml], "config.yaml is not a config of `fit`"),
        "no config": ([no_config], "has no config.yaml, so that nothing says what it is"),
        "never started": ([tmp_path / "study"], "no run has started"),
    }


def test_what_cannot_be_compared_is_refused_in_a_sentence(config, tmp_path):
    for paths, sentence in bad_runs(config, tmp_path).values():
        with pytest.raises(ValueError, match=sentence):
            compare(paths)


def test_a_metric_or_base_that_is_not_there_is_named_with_those_that_are(study):
    with pytest.raises(
        ValueError, match="--metric val/acuracy: no run has measured it; they have val/accuracy"
    ):
        compare(study, metric="val/acuracy")
    with pytest.raises(ValueError, match="--base ppo: no such group; there are base, critic, no-kl"):
        compare(study, base="ppo")


def test_one_run_alone_and_runs_without_a_common_seed_are_remarked(config, tmp_path):
    a = write_run(tmp_path / "a", config, seed=1)
    b = write_run(tmp_path / "b", config, seed=2, changes={"model.kl": None})
    assert "nothing to compare them with" in compare(a).remarks[0]
    comparison = compare([a, b])
    assert comparison.effects[0].test.p is None
    assert "no finished runs of a common seed" in comparison.remarks[0]
