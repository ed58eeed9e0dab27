"""Errors in constructors: a mistake has its key, whoever's class it is; a bug of ours shows its traceback."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import OverARun, Refused
from jsonargparse import Namespace

from grpo_pl.config.cli import configure
from grpo_pl.config.places import BugError, Places
from grpo_pl.losses import ClippedSurrogate
from grpo_pl.rewards.base import RewardFunction
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Sample

TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"
ERRORS = {
    "ValueError": (ValueError("too long"), "too long"),
    "TypeError": (TypeError("no number"), "no number"),
    "an empty ValueError": (ValueError(), "MyReward failed with ValueError: "),
    "AttributeError": (
        AttributeError("no x"),
        "MyReward failed with AttributeError: no x (GRPO_PL",
    ),
    "KeyError": (KeyError("k"), "MyReward failed with KeyError: 'k' (GRPO_PL_TRACEBACK=1 shows where)"),
    "RuntimeError": (RuntimeError("no GPU"), "MyReward failed with RuntimeError: no GPU (GRPO_PL"),
}


class MyReward(RewardFunction):
    """A user's class, whose constructor fails."""

    def __init__(self, error: str = "", weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        raise ERRORS[error][0]

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [0.0 for _ in samples]


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_a_users_constructor_is_one_sentence_with_its_key(
    name: str, refused: Refused, over_a_run: OverARun
) -> None:
    path = f"{__name__}.MyReward"
    words = f"--model.rewards '{{mine: {{class_path: {path}, init_args: {{error: {name}}}}}}}'"
    answer = refused(over_a_run, words)
    assert answer.startswith("grpo_pl: error: model.rewards.mine: ")
    assert ERRORS[name][1].strip() in answer


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--checkpoint.every_n_epochs=-1", "checkpoint: Invalid value for every_n_epochs=-1"),
        ("--checkpoint.save_top_k=-2", "checkpoint: Invalid value for save_top_k=-2"),
    ],
)
def test_what_a_library_refuses_in_our_constructor_has_the_key(
    words: str, sentence: str, refused: Refused, over_a_run: OverARun
) -> None:
    assert f"error: {sentence}" in refused(over_a_run, words)


def fails_with(error: Exception) -> Any:
    """A constructor of ours with a bug."""
    source = "def __init__(self, *_, **__):\n    raise error"
    scope = {"__name__": "grpo_pl.losses.clipped", "error": error}
    exec(source, scope)
    return scope["__init__"]


BUGS = [ValueError("zip"), TypeError("None + 1"), AttributeError("no x"), KeyError("k"), RuntimeError("r")]


@pytest.mark.parametrize("bug", BUGS, ids=repr)
def test_a_bug_in_our_constructor_is_no_mistake_of_the_user(
    bug: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClippedSurrogate, "__init__", fails_with(bug))
    with pytest.raises(BugError) as raised:
        Places(Namespace()).build(ClippedSurrogate, clip_low=0.2)
    assert raised.value.__cause__ is bug


@pytest.mark.parametrize("bug", BUGS, ids=repr)
def test_a_bug_in_our_constructor_ends_a_command_as_it_is(
    bug: Exception, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> None:
        raise BugError from bug

    monkeypatch.setattr(Places, "build", build)
    words = ["--config", str(TINY), "--pretrained", str(tiny_model)]
    with pytest.raises(type(bug)) as raised:
        configure([*words, "--trainer.default_root_dir", str(tmp_path)])
    assert raised.value is bug


def test_arguments_that_a_class_does_not_take_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="unexpected keyword argument 'nope'"):
        Places(Namespace()).build(ClippedSurrogate, nope=1)
