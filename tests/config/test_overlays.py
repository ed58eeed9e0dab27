"""A mapping laid over another adds to it by name, in a file as in an option; a list replaces a list."""

import inspect
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import Fit, OverARun, Refused, command
from helpers.repository import ROOT
from helpers.run_results import untimed

from grpo_pl.commands.ablate.study import read_study
from grpo_pl.config.cli import CLI
from grpo_pl.config.overlays import laid_over
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.module import PolicyOptimization
from grpo_pl.rewards.base import RewardFunction
from grpo_pl.types import Sample

TINY = str(ROOT / "configs" / "tiny.yaml")
Settings = dict[str, Any]
Way = Callable[[Settings, Path], list[str]]


class Sum(RewardFunction):
    """A user's reward with mappings of its own."""

    def __init__(
        self,
        parts: dict[str, RewardFunction],
        scale: dict[str, float] | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.parts, self.scale, self.more = parts, scale, more

    def score(self, samples: list[Sample]) -> list[float]:
        return [0.0 for _ in samples]


def file(settings: Settings, folder: Path) -> list[str]:
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return ["--config", str(path)]


def text(settings: Settings, _: Path) -> list[str]:
    return ["--config", json.dumps(settings)]


def option(settings: Settings, _: Path) -> list[str]:
    """The option of the whole mapping: `--model.rewards '{...}'`."""
    return [
        word
        for group, inside in settings.items()
        for key, value in inside.items()
        for word in (f"--{group}.{key}", json.dumps(value))
    ]


def options(settings: Settings, _: Path) -> list[str]:
    """An option for each entry: `--model.rewards.lines ...`."""
    return [
        word
        for group, inside in settings.items()
        for key, mapping in inside.items()
        for name, value in mapping.items()
        for word in (f"--{group}.{key}.{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def group(settings: Settings, _: Path) -> list[str]:
    """The option of the whole group: `--model '{...}'`."""
    return [word for name, inside in settings.items() for word in (f"--{name}", json.dumps(inside))]


def group_in_a_file(settings: Settings, folder: Path) -> list[str]:
    """A file that names the file of a group: `model: model.yaml`."""
    named = {name: file(inside, folder)[1] for name, inside in settings.items()}
    return file(named, folder)


WAYS = (file, text, option, options, group, group_in_a_file)
LINES = {"class_path": "StepPattern", "init_args": {"pattern": "x"}}


def read(*words: str) -> Settings:
    settings: Settings = CLI(["--config", TINY, *words]).settings.as_dict()
    return settings


def classes(entries: Mapping[str, Any]) -> dict[str, str]:
    return {name: entry["class_path"].rpartition(".")[2] for name, entry in entries.items()}


OVER: dict[str, tuple[Settings, dict[str, str]]] = {
    "adds": ({"lines": LINES}, {"digit": "Format", "lines": "StepPattern"}),
    "replaces one": ({"digit": "LastNumber"}, {"digit": "LastNumber"}),
    "removes one": ({"digit": None, "right": "LastNumber"}, {"right": "LastNumber"}),
    "replaces all": ({"*": None, "right": "LastNumber"}, {"right": "LastNumber"}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OVER)
def test_a_mapping_means_the_same_in_a_file_and_in_an_option(name: str, way: Way, tmp_path: Path) -> None:
    rewards, expected = OVER[name]
    model = read(*way({"model": {"rewards": rewards}}, tmp_path))["model"]
    assert classes(model["rewards"]) == expected
    assert classes(model["verifiers"]) == {"accuracy": "LastNumber"}


@pytest.mark.parametrize(("first", "second"), [*pairwise(WAYS), (options, file), (option, text)])
def test_what_comes_later_on_the_command_line_wins(first: Way, second: Way, tmp_path: Path) -> None:
    one = {"model": {"terms": {"a": "CISPO", "b": "Reinforce"}}}
    two = {"model": {"terms": {"b": {"class_path": "GSPO"}, "a": None, "c": "SAPO"}}}
    terms = read(*first(one, tmp_path), *second(two, tmp_path))["model"]["terms"]
    assert classes(terms) == {"b": "GSPO", "c": "SAPO"}


def mapping_keys() -> set[str]:
    """The keys of `model` and `data` whose type is a mapping."""
    return {
        f"{group}.{name}"
        for group, cls in (("model", PolicyOptimization), ("data", RolloutDataModule))
        for name, parameter in inspect.signature(cls).parameters.items()
        if str(parameter.annotation).startswith("dict[")
    }


@pytest.mark.parametrize("way", [file, options])
def test_every_mapping_of_components_follows_the_rule(way: Way, tmp_path: Path) -> None:
    more = {
        "rewards": {"more": "LastNumber"},
        "verifiers": {"more": "ExactMatch"},
        "terms": {"more": "CISPO"},
    }
    before = read("--model.terms.first", "Reinforce")["model"]
    after = read("--model.terms.first", "Reinforce", *way({"model": more}, tmp_path))["model"]
    for key, added in more.items():
        assert classes(after[key]) == {**classes(before[key]), **added}


def test_these_are_all_mappings_of_components() -> None:
    assert mapping_keys() == {"model.rewards", "model.verifiers", "model.terms"}


@pytest.mark.parametrize("way", [file, option, options])
def test_null_is_a_value_where_values_are_of_any_type(way: Way, tmp_path: Path) -> None:
    first = ("--data.format.template_kwargs", '{"think": true, "date": "today"}')
    over = {"data.format": {"template_kwargs": {"think": None, "more": 3}}}
    if way is file:
        over = {"data": {"format": {"template_kwargs": {"think": None, "more": 3}}}}
    kwargs = read(*first, *way(over, tmp_path))["data"]["format"]["template_kwargs"]
    assert kwargs == {"think": None, "date": "today", "more": 3}


NESTED = {"parts": {"a": "LastNumber", "b": "ExactMatch"}, "scale": {"p": 2.0}, "more": {"x": 1}}
MINE = {"model": {"rewards": {"mine": {"class_path": f"{__name__}.Sum", "init_args": NESTED}}}}


@pytest.mark.parametrize(
    "way",
    [
        lambda changes, _: text({"model": {"rewards": {"mine": {"init_args": changes}}}}, _),
        lambda changes, _: options(
            {"model.rewards": {f"mine.{key}": value for key, value in changes.items()}}, _
        ),
    ],
    ids=["file", "options"],
)
def test_the_rule_holds_inside_a_component(way: Way, tmp_path: Path) -> None:
    changes = {"parts": {"a": None, "c": "Format"}, "scale": {"p": None, "q": 1.0}, "more": {"x": None}}
    changes["parts"] |= {"c": "LastNumber"}
    mine = read(*text(MINE, tmp_path), *way(changes, tmp_path))["model"]["rewards"]["mine"]["init_args"]
    assert classes(mine["parts"]) == {"b": "ExactMatch", "c": "LastNumber"}
    assert (mine["scale"], mine["more"]) == ({"q": 1.0}, {"x": None})


@pytest.mark.parametrize("way", [file, option, options])
def test_an_entry_of_another_class_keeps_nothing_that_is_the_old_ones(way: Way, tmp_path: Path) -> None:
    heavy = ("--model.rewards.digit.weight", "3", "--model.rewards.digit.full_match", "false")
    digit = read(*heavy, *way({"model": {"rewards": {"digit": "ExactMatch"}}}, tmp_path))["model"]["rewards"][
        "digit"
    ]
    assert digit["init_args"] == {
        **{"fold_case": False, "fold_whitespace": False, "on_error": "raise"},
        "weight": 3.0,  # has the same default in both, as with --model.loss
    }
    all_anew = {"model": {"rewards": {"*": None, "digit": "ExactMatch"}}}
    assert read(*heavy, *way(all_anew, tmp_path))["model"]["rewards"]["digit"]["init_args"]["weight"] == 1.0


@pytest.mark.parametrize("way", [file, options])
def test_settings_without_a_class_are_those_of_the_entry_before(way: Way, tmp_path: Path) -> None:
    over = {"model": {"rewards": {"digit": {"init_args": {"weight": 2.0}}}}}
    digit = read(*way(over, tmp_path))["model"]["rewards"]["digit"]
    assert digit["class_path"] == "grpo_pl.rewards.rules.Format"
    assert (digit["init_args"]["weight"], digit["init_args"]["pattern"]) == (2.0, ".*[0-9].*")


@pytest.mark.parametrize("more", [[], ["RunningNormalization"]])
def test_a_list_replaces_a_list_of_any_length(more: list[str], tmp_path: Path) -> None:
    def clip(**settings: float) -> dict[str, Any]:
        return {"class_path": "Clip", "init_args": settings}

    first = {"model": {"reward_transforms": [clip(low=-1.0, high=1.0)]}}
    over = {"model": {"reward_transforms": [clip(high=5.0), *more]}}
    for way in (file, option):
        transforms = read(*way(first, tmp_path), *way(over, tmp_path))["model"]["reward_transforms"]
        assert transforms[0]["init_args"] == {"low": -10.0, "high": 5.0}


@pytest.mark.parametrize(
    ("key", "there", "way"),
    [
        *(("rewards", "there is only digit", way) for way in WAYS),
        *(("verifiers", "there is only accuracy", way) for way in (file, options)),
        *(("terms", "there is none", way) for way in (file, options)),
    ],
)
def test_to_remove_what_is_not_there_is_refused(
    key: str, there: str, way: Way, tmp_path: Path, refused: Refused
) -> None:
    over = way({"model": {key: {"nope": None}}}, tmp_path)
    sentence = f"grpo_pl: error: model.{key}.nope: null removes an entry, and {there}: leave it out"
    assert refused(command, "fit", "--config", TINY, *over) == sentence


@pytest.mark.parametrize("rewards", [{"*": None}, {"digit": None}, {}])
def test_no_reward_is_refused_before_a_model_is_loaded(
    rewards: Settings, refused: Refused, over_a_run: OverARun
) -> None:
    assert "model.rewards has no reward with a weight" in refused(
        over_a_run, f"--model.rewards '{json.dumps(rewards)}'"
    )


def test_a_runs_config_alone_is_the_same_run_and_a_base_like_any_other(fit: Fit, tmp_path: Path) -> None:
    ours = ("--model.rewards", '{"*": null, right: LastNumber}')
    steps = ("--config", ROOT / "configs" / "ablations" / "step_rewards.yaml")
    short = ("--trainer.max_epochs", 1, "--samples.every", 0, "--data.val", "null")
    first = fit(*ours, *steps, *short, root=tmp_path / "first")
    saved = str(first / "config.yaml")
    command(
        "fit",
        "--config",
        saved,
        "--trainer.default_root_dir",
        tmp_path / "second",
        "--checkpoint.dirpath",
        "null",
    )
    assert untimed(first) == untimed(tmp_path / "second")
    over = CLI(["--config", saved, "--model.rewards.right.weight", "0.5", "--model.rewards.lines", "null"])
    assert classes(over.settings.as_dict()["model"]["rewards"]) == {"right": "LastNumber"}


def test_a_variant_of_a_study_is_laid_over_its_base_by_the_same_rule(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "base: [tiny, {model: {rewards: {a: LastNumber}}}]\n"
        "variants: {all: {}, one: {model: {rewards: {a: null}}},\n"
        "           own: {model: {rewards: {'*': null, b: LastNumber}}}}"
    )
    written = read_study(path).write_settings(tmp_path / "settings")
    rewards = {name: CLI(words).settings.as_dict()["model"]["rewards"] for name, words in written.items()}
    assert {name: list(entries) for name, entries in rewards.items()} == {
        **{"all": ["digit", "a"], "one": ["digit"], "own": ["b"]},
    }


@pytest.mark.parametrize("name", ["step_rewards", "process_supervision"])
def test_the_ablations_of_steps_do_what_they_say(name: str) -> None:
    path = ROOT / "configs" / "ablations" / f"{name}.yaml"
    rewards = classes(read("--config", str(path))["model"]["rewards"])
    beside = {"digit": "Format"} if "beside the whole" in path.read_text() else {}
    assert rewards == {**beside, "lines": "StepPattern"}


def test_laid_over_by_hand() -> None:
    assert laid_over({"a": 1, "b": 2}, {"b": 3, "c": 4}, null_removes=True) == {"a": 1, "b": 3, "c": 4}
    assert laid_over({"a": 1, "b": 2}, {"a": None}, null_removes=True) == {"b": 2}
    assert laid_over({"a": 1, "b": 2}, {"a": None}, null_removes=False) == {"a": None, "b": 2}
    assert laid_over({"a": 1}, {"b": 2, "*": None}, null_removes=False) == {"b": 2}
    assert laid_over({"a": 1}, {}, null_removes=True) == {}
    assert laid_over(None, {"a": None, "*": None}, null_removes=True) == {"a": None, "*": None}
