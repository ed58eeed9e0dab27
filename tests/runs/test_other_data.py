"""A run that resumes with other prompts than it began with says so, before anything expensive."""

import datetime
import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Fit, Refused, command
from helpers.exact import few
from helpers.run_results import column
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.prompts.fingerprint import change, fingerprint
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.runs.layout import ENDED_FILE
from grpo_pl.runs.manifest import SHARDED
from grpo_pl.runs.safe_loading import state_of
from grpo_pl.types import Prompt


class Unstartable(InProcessEngine):  # type: ignore[misc]
    """Shows that a run got as far as its engine."""

    def start(self, **_: object) -> None:
        raise AssertionError("the engine starts")


Row = dict[str, object]
SUMS: list[Row] = [{"question": f"What is {n} + 1?", "answer": n + 1, "level": n} for n in range(12)]
QUICK = (
    *("--samples.every", 0, "--data.prompts_per_iteration", 4, "--data.minibatches", 1),
    *("--data.sampling.max_tokens", 4, "--trainer.check_val_every_n_epoch", 9, "--data.train", "JSONL"),
    *("--data.val", "JSONL"),
)


def put(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def begun(fit: Fit, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One iteration of a run, in the folder with its data and its model."""
    here = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_model, here / "model")
    train, val = put(here / "train.jsonl", SUMS), put(here / "val.jsonl", SUMS[:2])
    files = "--data.train.path", train, "--data.val.path", val
    fit(*QUICK, *files, "--trainer.max_epochs", 1, root=here / "run", pretrained=here / "model")
    (here / "run" / ENDED_FILE).unlink()
    return here


@pytest.fixture
def go_on(begun: Path, fit: Fit, tmp_path: Path) -> Callable[..., Path]:
    """Resumes a copy of the run for an iteration, with data and template as the arguments leave them."""
    template = begun / "model" / "chat_template.jinja"

    def resume(*options: object, train: list[Row] = SUMS, val: list[Row] = SUMS[:2], date: str = "") -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(begun / "run", tmp_path / "run", symlinks=True)
        files = "--data.train.path", put(begun / "train.jsonl", train), "--data.val.path", begun / "val.jsonl"
        put(begun / "val.jsonl", val)
        before = template.read_text()
        template.write_text(date + before)
        last = "--trainer.max_epochs", 2, *options
        try:
            return fit(*QUICK, *files, *last, root=tmp_path / "run", pretrained=begun / "model")
        finally:
            template.write_text(before)

    return resume


def with_last(**changes: object) -> list[Row]:
    return [*SUMS[:-1], SUMS[-1] | changes]


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "another question": ({"train": with_last(question="Why?")}, "data.train: its questions are not those"),
    "another order": ({"train": SUMS[::-1]}, "data.train: its questions are not those"),
    "a row more": ({"train": [*SUMS, SUMS[0]]}, "trained on (12 prompts then, 13 now): give back the data"),
    "another gold answer": ({"train": with_last(answer=7)}, "data.train: its gold answers are not those"),
    "another column": ({"train": with_last(level=0)}, "data.train: its further columns are not those"),
    "validation alone": ({"val": SUMS[1:3]}, "data.val: its questions are not those"),
    "another template": ({"date": "31 Jan 2026"}, "data.format: the questions of data.train are those"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_prompts_that_changed_are_refused_by_their_key_before_the_engine_starts(
    case: str, go_on: Callable[..., Path], refused: Refused, tmp_path: Path
) -> None:
    changes, sentence = CHANGED[case]
    broken = "--ckpt_path", "last", "--data.engine", f"{__name__}.Unstartable"
    said = refused(go_on, *broken, **changes)
    assert sentence in said
    assert "or set data.changed_prompts to warn and go on with these" in said
    assert column(tmp_path / "run", "iteration") == [0, 1]


def test_the_same_command_is_refused_and_goes_on_with_a_warning_where_one_says_so(
    go_on: Callable[..., Path], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"train": with_last(answer=7)}
    assert "data.train: its gold answers" in refused(go_on, **changes)
    folder = go_on("--data.changed_prompts", "warn", **changes)
    assert column(folder, "iteration") == [0, 1, 2]
    assert capsys.readouterr().out.count("! data.train: its gold answers are not those") == 1
    (folder / ENDED_FILE).unlink()


def test_the_same_prompts_from_another_file_are_the_same(go_on: Callable[..., Path], tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere.jsonl", SUMS)
    folder = go_on("--ckpt_path", "last", "--data.train.path", elsewhere)
    assert column(folder, "iteration") == [0, 1, 2]


def test_a_checkpoint_of_an_old_version_knows_no_prompts_and_goes_on(
    go_on: Callable[..., Path], begun: Path, tmp_path: Path
) -> None:
    old = torch.load(begun / "run" / "checkpoints" / "iteration-0001.ckpt", weights_only=True)
    assert old.pop("RolloutDataModule")["prompts"].keys() == {"train", "val"}
    torch.save(old, tmp_path / "old.ckpt")
    folder = go_on("--ckpt_path", tmp_path / "old.ckpt", "--resume", "never", train=SUMS[1:])
    assert column(folder, "iteration")[-1] == 2


def test_validation_may_ask_other_questions(begun: Path, tmp_path: Path) -> None:
    checkpoint = begun / "run" / "checkpoints" / "iteration-0001.ckpt"
    other = put(tmp_path / "other.jsonl", SUMS[5:])
    config = "--config", begun / "run" / "config.yaml", "--data.val.path", other
    command("validate", *config, "--ckpt_path", checkpoint, "--trainer.default_root_dir", tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_what_data_has_saved_is_read_without_the_tensors_of_either_form(
    sharded: bool, tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    if sharded:
        path.mkdir()
    torch.save({"Data": {"prompts": {}}, "Other": 3}, path / SHARDED if sharded else path)
    assert state_of("Data", path) == {"prompts": {}}
    assert state_of("Other", path) == state_of("None", path) == state_of("Data", None) == {}
    (path / SHARDED if sharded else path).write_bytes(b"torn")
    assert state_of("Data", path) == {}


@few
@given(
    a=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=3),
    b=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=3),
)
def test_prompts_have_one_fingerprint_exactly_if_they_are_the_same(
    a: list[list[int]], b: list[list[int]]
) -> None:
    """However their tokens are divided among prompts."""

    def of(sets: list[list[int]]) -> dict[str, str]:
        return fingerprint([Prompt(token_ids=ids, text="q", answer="") for ids in sets])

    assert (of(a) == of(b)) == (a == b)
    assert bool(change("data.train", of(a), of(b))) == (a != b)


def test_what_no_file_holds_counts_by_its_type() -> None:
    """A task's verifier has another address in every process."""
    one, other = (
        fingerprint([Prompt(token_ids=[1], text="q", answer="", metadata={"score": scorer, ("a", 1): {2}})])
        for scorer in (lambda: 0, lambda: 1)
    )
    assert one == other


def columns(value: object) -> str:
    return fingerprint([Prompt(token_ids=[1], text="q", answer="", metadata={"x": value})])["columns"]


VALUES: dict[str, tuple[object, object]] = {
    "decimal": (Decimal("1.5"), Decimal("2.5")),
    "date": (datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)),
    "timestamp": (datetime.datetime(2020, 1, 1, 1), datetime.datetime(2020, 1, 1, 2)),
    "time": (datetime.time(1), datetime.time(2)),
    "duration": (datetime.timedelta(1), datetime.timedelta(2)),
    "bytes": (b"a", b"b"),
    "numpy scalar": (np.float32(0.1), np.float32(0.2)),
    "numpy long double": (np.longdouble(1.5), np.longdouble(2.5)),
    "array": (np.array([[1, 2]]), np.array([[1, 3]])),
    "tuple": ((1, 2), (1, 3)),
    "set": ({"a", "b"}, {"a", "c"}),
    "nested": ([{"a": {"b": b"1"}}], [{"a": {"b": b"2"}}]),
    "fraction": (0.1, 0.1001),
    "whole float": (1e16, 1e16 + 2),
    "tiny float": (1e-50, 2e-50),
    "truth value": (True, 1),
    "item of a list": ([None], []),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_changed_column_of_any_type_is_seen(kind: str) -> None:
    before, now = VALUES[kind]
    assert columns(before) == columns(deepcopy(before)) != columns(now)


SAME: dict[str, tuple[object, object]] = {
    "order of keys": ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
    "empty and missing": ({"a": 1, "b": None}, {"a": 1}),
    "float32": (0.1, float(np.float32(0.1))),
    "large float32": (123456789.4, float(np.float32(123456789.4))),
    "whole numbers as floats": (3, 3.0),
    "list and tuple": ([1, 2], (1, 2)),
    "list and array": ([0.1, 2], np.array([0.1, 2], dtype=np.float32)),
    "order of a set": ({"a", "b", "c"}, {"c", "b", "a"}),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_value_is_the_same_in_every_format(kind: str) -> None:
    one, other = SAME[kind]
    assert columns(one) == columns(other)
