"""What a study's file says, and how it is refused before any run begins."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import Refused, command
from helpers.repository import ROOT

from grpo_pl.__main__ import main
from grpo_pl.commands.ablate.study import RunBudget, read_study

TINY = str(ROOT / "configs" / "tiny.yaml")
VARIANTS: dict[str, Any] = {"grpo": {}, "no_kl": {"model": {"kl": None}}}
SEQUENTIAL: dict[str, Any] = {"sequential": {"looks": [2]}}
TUNED: dict[str, Any] = {
    "tune": {"model.optimizer.init_args.lr": ["3e-5", 1e-4], "seeds": [9], "iterations": 1}
}
Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A study's file: two variants of configs/tiny.yaml, or as its keys are said; None leaves one out."""

    def write(**keys: Any) -> Path:
        content = {"base": TINY, "variants": VARIANTS, "seeds": [3, 5], "budget": {"iterations": 2}} | keys
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
        return path

    return write


def test_a_study_lays_files_and_settings_over_its_base_in_their_order(
    written: Written, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("data: {group_size: 2}\n")
    variants = {"a": None, "b": ["mine.yaml", {"data": {"seed": 1}}]}
    study = read_study(written(base=[TINY, {"data": {"group_size": 8}}], variants=variants, seeds=2))
    options = study.write_settings(tmp_path / "settings")
    shared = ["--config", TINY, "--config", f"{tmp_path}/settings/b.1.yaml"]
    own = ["--config", f"{tmp_path}/mine.yaml", "--config", f"{tmp_path}/settings/b.3.yaml"]
    assert options["b"] == [*shared, *own, "--trainer.max_epochs", "2"]
    assert options["a"] == ["--config", TINY, "--config", f"{tmp_path}/settings/a.1.yaml", *options["b"][-2:]]
    assert yaml.safe_load((tmp_path / "settings" / "b.1.yaml").read_text()) == {"data": {"group_size": 8}}
    assert study.seeds == [1, 2]


@pytest.mark.parametrize(
    ("unit", "options"),
    [
        ("response_tokens", ["--trainer.max_epochs", "-1", "--budget.response_tokens", "500"]),
        ("seconds", ["--trainer.max_epochs", "-1", "--budget.seconds", "500"]),
    ],
)
def test_a_budget_that_is_not_of_iterations_takes_their_limit_away(unit: str, options: list[str]) -> None:
    assert RunBudget(unit, 500).options == options


WRONG = {
    "no base": ({"base": None}, "base: expected a config file"),
    "a base that is not there": ({"base": "no.yaml"}, r"base: there is no file \S+no\.yaml$"),
    "no variants": ({"variants": None}, "variants: expected a name and its settings"),
    "a list of variants": ({"variants": ["grpo"]}, "variants: expected a name and its settings"),
    "a variant that names no folder": ({"variants": {"a/b": {}}}, "variants: 'a/b' is to name a folder"),
    "a variant that is a number": (
        {"variants": {"a": 7}},
        "variants.a: expected a config file, ",
    ),
    "a variant's file that is not there": ({"variants": {"a": "no.yaml"}}, "variants.a: there is no file"),
    "a misspelt key": ({"varients": {}}, r"there is no varients\. Did you mean variants\?"),
    "a key like no other": ({"model": {}}, r"there is no model\. A study has prepare, base, design, "),
    "seeds that repeat": ({"seeds": [1, 1]}, "seeds: expected different whole numbers"),
    "no seeds": ({"seeds": []}, "seeds: expected different whole numbers"),
    "seeds in words": ({"seeds": "three"}, "seeds: expected different whole numbers"),
    "a budget of two kinds": (
        {"budget": {"iterations": 1, "seconds": 2}},
        "budget: expected one of iterations",
    ),
    "a budget of another kind": ({"budget": {"hours": 1}}, "budget: expected one of iterations"),
    "half an iteration": ({"budget": {"iterations": 1.5}}, r"budget\.iterations: expected a number above 0"),
    "nothing to spend": ({"budget": {"seconds": 0}}, r"budget\.seconds: expected a number above 0"),
    "a misspelt setting": (
        {"variants": {"a": {"modle": {"kl": None}}}},
        r"study\.yaml: variants\.a: there is no .*modle.*Did you mean model",
    ),
    "a variant that cannot be": (
        {"variants": {"a": {"model": {"advantage": "GAE"}}}},
        "variants.a: model.advantage .*set model.critic",
    ),
    "a value of the second variant": (
        {"variants": {"a": {}, "b": {"model": {"loss": {"init_args": {"clip_low": 2.0}}}}}},
        r"error: study \S+study\.yaml: variants\.b: model\.loss\.clip_low=2\.0: expected",
    ),
    "a word for a number": (
        {"variants": {"a": {}, "b": {"data": {"group_size": "four"}}}},
        r"error: study \S+study\.yaml: variants\.b: data\.group_size: expected int, got four",
    ),
    "a design that is not there": (
        {"design": "factorail"},
        r"design: expected one of one_at_a_time, factorial, got 'factorail'\. Did you mean factorial\?",
    ),
    "variants of a factorial study": (
        {"design": "factorial", "factors": {"kl": {"a": {}, "b": {}}}},
        "variants: a factorial study has factors instead",
    ),
    "factors of another design": (
        {"variants": None, "factors": {"kl": {"a": {}, "b": {}}}},
        "factors: set design: factorial",
    ),
    "no factors": ({"design": "factorial", "variants": None}, "factors: expected a name and its settings"),
    "a factor of one level": (
        {"design": "factorial", "variants": None, "factors": {"kl": {"none": {}}}},
        r"factors\.kl: expected two levels or more",
    ),
    "a level without quotes": (
        {"design": "factorial", "variants": None, "factors": {"kl": {False: {}, "on": {}}}},
        r"factors\.kl: False is to name a folder: .* quotes around on, off",
    ),
    "a level's file that is not there": (
        {"design": "factorial", "variants": None, "factors": {"kl": {"a": "no.yaml", "b": {}}}},
        r"factors\.kl\.a: there is no file",
    ),
    "too many cells": (
        {
            "design": "factorial",
            "variants": None,
            "factors": {f: {level: {} for level in "abcdefgh"} for f in "abcd"},
        },
        r"factors: they have 4096 combinations, expected 512 or fewer",
    ),
    "a cell that cannot be": (
        {
            "design": "factorial",
            "variants": None,
            "factors": {
                "kl": {"a": {}, "b": {}},
                "credit": {"group": {}, "gae": {"model": {"advantage": "GAE"}}},
            },
        },
        r"variants\.kl=a,credit=gae: model\.advantage .*set model\.critic",
    ),
    "a margin of nothing": ({"margin": 0}, "margin: expected a number above 0, or null, got 0"),
    "nothing to tune": (
        {"tune": {"seeds": [9]}},
        "tune: expected settings with the values to try, and seeds",
    ),
    "one value to try": (
        {"tune": {"model.optimizer.init_args.lr": [1e-4], "seeds": [9]}},
        r"tune\.model\.optimizer\.init_args\.lr: expected two numbers or more to try",
    ),
    "a word to try": (
        {"tune": {"model.optimizer.init_args.lr": ["fast", 1e-4], "seeds": [9]}},
        r"init_args\.lr: expected numbers, got 'fast'",
    ),
    "a value to try twice": (
        {"tune": {"model.optimizer.init_args.lr": ["1e-4", 1e-4], "seeds": [9]}},
        r"init_args\.lr: expected different numbers",
    ),
    "pilots without seeds": (
        {"tune": {"model.optimizer.init_args.lr": [1e-4, 1e-3]}},
        r"tune\.seeds: expected different whole numbers",
    ),
    "pilots with a seed of the study": (
        {"tune": {"model.optimizer.init_args.lr": [1e-4, 1e-3], "seeds": [1, 5]}},
        r"tune\.seeds: 5 is a seed of the study too",
    ),
    "a setting to try that is not there": (
        {"tune": {"model.optimizer.init_args.rl": [1e-4, 1e-3], "seeds": [9]}},
        r"variants\.variant=grpo,rl=0\.0001: .*model\.optimizer.*rl",
    ),
    "looks that do not grow": (
        {"sequential": {"looks": [2, 2]}},
        r"sequential: expected numbers of seeds that grow, from 2 on",
    ),
    "a look at one seed": ({"sequential": {"looks": [1, 2]}}, "sequential: expected numbers of seeds"),
    "looks beyond the seeds": (
        {"sequential": {"looks": [2, 4]}},
        r"sequential\.looks: the last one is to be the number of seeds, 2",
    ),
    "a difference of nothing to detect": ({"detect": [0.1, 0]}, "detect: expected a number above 0"),
    "an end that is not validated": (
        {"base": [TINY, {"trainer": {"check_val_every_n_epoch": 4}}]},
        "ends after 2 iterations and validates every 4, so that its end would not be measured",
    ),
}


@pytest.mark.parametrize(("keys", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_study_is_refused_before_anything_is_written(
    keys: dict[str, Any],
    sentence: str,
    written: Written,
    tmp_path: Path,
    weightless: Path,
    refused: Refused,
) -> None:
    out = tmp_path / "out"
    words = ("ablate", written(**keys), "--out", out, "--pretrained", weightless)
    assert re.search(sentence, refused(command, *words))
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no.yaml"], "there is no study no.yaml"),
        (["{}", "--jobs", "0"], "ablate: --jobs=0: expected 1 or more"),
        (["{}", "--pilot", "runs"], "ablate: --pilot: it is for --dry-run"),
        (["{}", "--pilot", "no", "--dry-run"], "there is no folder no"),
        (["{}", "--seeds", "[1, 1]"], "ablate: --seeds: expected different whole numbers"),
        (["{}", "--seeds", "[1"], "ablate: --seeds: is not YAML"),
        (["{}", "--variants", "[no-kl]"], "ablate: --variants: there is no no-kl. Did you mean no_kl?"),
        (["{}", "--variants", "ppo"], "ablate: --variants: there is no ppo; there are grpo, no_kl"),
        (["{}", "--variants", "7"], "ablate: --variants: expected names such as '[grpo]', got 7"),
        (["{}", "--slurm", "--nodes 1 --server-nodes 1"], "jobs with --server-nodes are no array"),
        (["{}", "--slurm", "--nodes x"], "--nodes: invalid int value"),
    ],
)
def test_a_wrong_command_is_refused(
    arguments: list[str],
    sentence: str,
    written: Written,
    weightless: Path,
    refused: Refused,
) -> None:
    words = [word.format(written()) for word in arguments]
    assert sentence in refused(command, "ablate", *words, "--pretrained", weightless)


def dry_run(
    study: Path, out: Path, weightless: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> list[str]:
    """The names of the runs that a dry run lists."""
    words = ("ablate", str(study), "--out", str(out), "--dry-run", "--pretrained", str(weightless))
    with pytest.raises(SystemExit) as end:
        main([*words, *arguments])
    assert end.value.code == 0
    return re.findall(r"^(.+, seed \d+): ", capsys.readouterr().out, re.MULTILINE)


def test_a_dry_run_lists_every_variant_for_one_seed_after_the_other(
    written: Written, tmp_path: Path, weightless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = dry_run(written(), tmp_path / "out", weightless, capsys)
    assert runs == ["grpo, seed 3", "no_kl, seed 3", "grpo, seed 5", "no_kl, seed 5"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["--seeds", "[5]"], ["grpo, seed 5", "no_kl, seed 5"]),
        (["--seeds", "[9]", "--variants", "[no_kl]"], ["no_kl, seed 9"]),
        (["--seeds", "1", "--variants", "grpo"], ["grpo, seed 1"]),
    ],
    ids=["a seed", "a new seed of a variant", "how many"],
)
def test_options_choose_a_part_of_a_study(
    arguments: list[str],
    runs: list[str],
    written: Written,
    tmp_path: Path,
    weightless: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dry_run(written(), tmp_path / "out", weightless, capsys, *arguments) == runs


@pytest.mark.parametrize(
    ("keys", "arguments", "sentence"),
    [
        (SEQUENTIAL, ["--seeds", "[3]"], "--seeds: a sequential study runs whole"),
        (SEQUENTIAL, ["--variants", "grpo"], "--variants: a sequential study runs whole"),
        (SEQUENTIAL, ["--slurm", "--nodes 1"], "--slurm: a study with tune or sequential goes by what"),
        (TUNED, ["--slurm", "--nodes 1"], "--slurm: a study with tune or sequential goes by what"),
        (TUNED, ["--seeds", "[9]"], "tune.seeds: 9 is a seed of the study too"),
    ],
)
def test_what_a_design_does_not_allow_is_refused(
    keys: dict[str, Any],
    arguments: list[str],
    sentence: str,
    written: Written,
    weightless: Path,
    refused: Refused,
) -> None:
    words = ("ablate", written(**keys), *arguments, "--pretrained", weightless)
    assert sentence in refused(command, *words)


def test_a_dry_run_of_a_tuned_study_lists_the_pilot_runs_first(
    written: Written, tmp_path: Path, weightless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = dry_run(written(**TUNED, seeds=[3]), tmp_path / "out", weightless, capsys)
    pilots = [f"variant={name},lr={lr}, seed 9" for name in VARIANTS for lr in ("3e-05", "0.0001")]
    assert runs == [*pilots, "grpo, seed 3", "no_kl, seed 3"]


def test_a_factorial_study_runs_every_combination_of_levels_with_every_seed(
    written: Written, tmp_path: Path, weightless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors = {
        "kl": {"k3": {}, "none": {"model": {"kl": None}}},
        "epochs": {1: {}, 2: {"data": {"update_epochs": 2}}},
    }
    path = written(design="factorial", variants=None, factors=factors, seeds=2)
    cells = ["kl=k3,epochs=1", "kl=k3,epochs=2", "kl=none,epochs=1", "kl=none,epochs=2"]
    runs = dry_run(path, tmp_path / "out", weightless, capsys)
    assert runs == [f"{cell}, seed {seed}" for seed in (1, 2) for cell in cells]
    assert read_study(path).variants["kl=none,epochs=2"] == [
        Path(TINY),
        {"model": {"kl": None}},
        {"data": {"update_epochs": 2}},
    ]
    arguments = "--variants", "[kl=none]", "--seeds", "[7]"
    runs = dry_run(path, tmp_path / "out", weightless, capsys, *arguments)
    assert runs == ["kl=none,epochs=1, seed 7", "kl=none,epochs=2, seed 7"]


def test_on_slurm_each_run_is_a_job_of_one_array(
    written: Written, tmp_path: Path, weightless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        main(
            [
                *("ablate", str(written()), "--out", str(out), "--dry-run", "--pretrained", str(weightless)),
                *("--slurm", "--nodes 1 --gpus-per-node 0 --time 1:00:00"),
            ]
        )
    script = capsys.readouterr().out
    script = script[script.index("#!/usr/bin/env bash") :]
    assert "#SBATCH --array=0-3\n" in script
    assert f"#SBATCH --output={out}/slurm-%A_%a.out\n" in script
    assert "#SBATCH --time=1:00:00\n" in script
    choosing = script[script.index("configs=") : script.index("export PYTHONUNBUFFERED")]
    chosen = subprocess.run(
        ["bash", "-euc", f'{choosing}\necho "$@"'],
        env={"SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert chosen.stdout.strip() == f"--config {out}/no_kl/seed-3/config.yaml"


def test_a_dry_run_names_what_is_to_be_prepared_and_makes_nothing(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command("ablate", written(prepare={"made": "tiny-model made --seed 3"}), "--dry-run")
    assert not ended.value.code
    assert "to prepare: made: tiny-model made --seed 3\n" in capsys.readouterr().out
    assert not (tmp_path / "made").exists()


def test_where_preparing_fails_no_run_begins(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = written(prepare=[{"made": "tiny-model study.yaml"}])
    with pytest.raises(SystemExit) as ended:
        command("ablate", study, "--out", "out")
    assert ended.value.code == 2
    assert "made could not be made: exit code 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_recipe_of_a_study_is_named_by_its_key(written: Written, refused: Refused) -> None:
    study = written(prepare={"made": "tinymodel x"})
    assert f"study {study}: prepare: made: expected a command of grpo_pl" in refused(command, "ablate", study)
