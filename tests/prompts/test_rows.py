"""Answers and columns as data sets really hold them: numbers, nested columns, conversations."""

import json
import sys
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exact import few
from helpers.questions import write
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.prompts import JSONL, HuggingFaceDataset, PromptSource
from grpo_pl.rewards.math_answer import MathAnswer
from grpo_pl.rewards.rules import ExactMatch, LastNumber
from grpo_pl.types import Prompt, Sample

WRITTEN = {
    "5e-05": "0.00005",
    "1.5E-7": "0.00000015",
    "1e22": "10000000000000000000000",
    "1E+2": "100",
    "-2.50": "-2.50",
    "0.10": "0.10",
    "3.0": "3.0",
    "3.14159265358979323846": "3.14159265358979323846",
    "123456789012345678901234567890": "123456789012345678901234567890",
    "0.0": "0.0",
    "-0": "0",
    "1e-999999999999999999999": "0.0",
}
"""A number as it stands in a JSON file, and the gold answer."""


def line(answer: str) -> str:
    return f'{{"question": "q", "answer": {answer}}}\n'


@pytest.mark.parametrize("number", WRITTEN)
def test_a_json_number_is_the_answer_that_stands_there_in_plain_decimals(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.jsonl").write_text(line(number))
    assert JSONL(str(tmp_path / "a.jsonl"))[0].answer == WRITTEN[number]


@few
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_spelled_without_an_exponent_and_unchanged(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "floats.jsonl"
    path.write_text(line(json.dumps(value)))
    answer = JSONL(str(path))[0].answer
    assert "e" not in answer.lower()
    assert float(answer) == value


def test_every_verifier_reads_the_number_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"question": "q", "answer": n} for n in (5e-05, 1e22, 0.1, 3.0)))
    for verifier in (LastNumber(), ExactMatch(), MathAnswer()):
        for row in JSONL(path):
            prompt = Prompt(token_ids=[1], text=row.text, answer=row.answer)
            assert verifier.can_score(prompt)
            said = [
                Sample(prompt=prompt, response=text, response_tokens=1, truncated=False)
                for text in (row.answer, "8")
            ]
            assert verifier.score(said) == [1.0, 0.0], (verifier, row.answer)


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A Parquet file of the given columns."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pandas = pytest.importorskip("pandas")

    def table(**columns: Any) -> str:
        path = tmp_path / "table.parquet"
        pandas.DataFrame({"question": ["q", "q"]} | columns).to_parquet(path)
        return str(path)

    return table


COLUMNS = {
    "float64": (np.array([5e-05, 72.0]), "0.00005", "72"),
    "whole floats": (np.array([1e23, -0.0]), "100000000000000000000000", "0"),
    "float32": (np.array([0.1, 3e-7], dtype=np.float32), "0.1", "0.0000003"),
    "float16": (np.array([0.1, 2.5], dtype=np.float16), "0.1", "2.5"),
    "int8": (np.array([7, -7], dtype=np.int8), "7", "-7"),
    "decimal": ([Decimal("1.50"), Decimal("0.01")], "1.50", "0.01"),
    "a tiny decimal": ([Decimal("0.00000001"), Decimal("1.00000000")], "0.00000001", "1.00000000"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_number_of_a_table_is_the_shortest_decimal_of_its_own_precision(
    parquet: Callable[..., str], kind: str
) -> None:
    numbers, *expected = COLUMNS[kind]
    assert [row.answer for row in HuggingFaceDataset(parquet(answer=numbers))] == expected


def test_a_number_inside_lists_keeps_its_own_precision(parquet: Callable[..., str]) -> None:
    arrow = pytest.importorskip("pyarrow")
    rows = [{"a.b": [[{"c": 0.1}], [{"c": 2.0}]]}]
    path = Path(parquet(x=[1, 2]))
    table = arrow.table({"question": ["q"], "rm": arrow.array(rows, type=arrow.struct({
        "a.b": arrow.list_(arrow.large_list(arrow.struct({"c": arrow.float32()})))
    }))})  # fmt: skip
    arrow.parquet.write_table(table, path)
    for answer, gold in (("rm.a.b.0.0.c", "0.1"), ("rm.a.b.1.0.c", "2")):
        assert HuggingFaceDataset(str(path), answer=answer)[0].answer == gold


CELLS = {
    "numbers": ["007", "1e3", "0.10", "100.0", "-2.5E-3", "3.00", "12345678901234567890.5"],
    "words": ["2.0", "1e3", "two", "007"],
}
GOLDS = {"numbers": ["007", "1000", "0.10", "100", "-0.0025", "3.00", "12345678901234567890.5"]}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.usefixtures("parquet")
def test_an_answer_of_a_csv_file_is_the_text_that_stands_there(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"q,{cell}\n" for cell in CELLS[kind]))
    rows = HuggingFaceDataset(str(tmp_path / "a.csv"))
    assert [row.answer for row in rows] == GOLDS.get(kind, CELLS[kind])
    assert {type(row.gold["answer"]) for row in rows} == {float if kind == "numbers" else str}


@pytest.mark.usefixtures("parquet")
def test_an_empty_cell_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nq,1\nq,\nq,inf\n")
    with pytest.raises(ValueError, match=r"row 1: .* got None; set `answer`"):
        list(HuggingFaceDataset(str(tmp_path / "a.csv")))


def test_a_table_without_rows_is_refused(parquet: Callable[..., str]) -> None:
    pandas = pytest.importorskip("pandas")
    path = parquet(answer=[1, 2])
    pandas.read_parquet(path)[:0].to_parquet(path)
    with pytest.raises(ValueError, match=r"has no rows.; set `path`"):
        HuggingFaceDataset(path)


def test_a_date_is_no_answer(parquet: Callable[..., str]) -> None:
    path = parquet(answer=[date(2026, 1, 31)] * 2)
    with pytest.raises(ValueError, match=r"got datetime.date\(.*; set `answer` to a column"):
        list(HuggingFaceDataset(path))


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}
NAMES = {"question": "prompt", "answer": "reward_model.ground_truth"}


def reader(kind: str, tmp_path: Path, parquet: Callable[..., str]) -> PromptSource:
    """One row in verl's layout."""
    if kind == "JSONL":
        return JSONL(write(tmp_path / "a.jsonl", VERL), **NAMES)
    arrays = VERL | {"prompt": np.array(VERL["prompt"], dtype=object)}
    path = parquet(**{name: [value, value] for name, value in arrays.items()})
    if kind == "saved as numpy":
        datasets = sys.modules["datasets"]
        table = datasets.load_dataset("parquet", data_files=path, split="train").with_format("numpy")
        table.save_to_disk(path := str(tmp_path / "saved"))
    return HuggingFaceDataset(path, rows="0:1", **NAMES)


@pytest.mark.parametrize("kind", ["JSONL", "Parquet", "saved as numpy"])
def test_the_nested_columns_of_verl_are_named_with_dots(
    tmp_path: Path, parquet: Callable[..., str], kind: str
) -> None:
    (row,) = reader(kind, tmp_path, parquet)
    assert (row.text, row.answer, row.messages) == ("1+1", "2", VERL["prompt"])
    assert row.metadata["reward_model"] == VERL["reward_model"]
    assert row.metadata["extra_info"] == VERL["extra_info"]


def test_the_columns_of_trl_are_read(tmp_path: Path) -> None:
    row = {"prompt": VERL["prompt"], "solution": "$2$"}
    source = JSONL(write(tmp_path / "a.jsonl", row), question="prompt", answer="solution")
    assert (source[0].text, source[0].answer) == ("1+1", "$2$")


def test_messages_that_datasets_keeps_as_a_struct_of_lists_are_read(tmp_path: Path) -> None:
    turned = {key: [turn[key] for turn in VERL["prompt"]] for key in ("role", "content")}
    source = JSONL(write(tmp_path / "a.jsonl", VERL | {"prompt": turned}), **NAMES)
    assert source[0].messages == VERL["prompt"]


@pytest.mark.parametrize(
    ("row", "name", "answer"),
    [
        ({"a.b": "literal", "a": {"b": "nested"}}, "a.b", "literal"),
        ({"a.b": {"c": "mixed"}, "a": {"x": 1}}, "a.b.c", "mixed"),
        ({"a": {"b.c": "inner"}}, "a.b.c", "inner"),
        ({"a": {"b": ["first", "second"]}}, "a.b.1", "second"),
        ({"a": [{"b": 0.5}]}, "a.0.b", "0.5"),
    ],
)
def test_a_column_of_that_very_name_comes_before_the_path(
    tmp_path: Path, row: dict[str, Any], name: str, answer: str
) -> None:
    source = JSONL(write(tmp_path / "a.jsonl", {"question": "q"} | row), answer=name)
    assert source[0].answer == answer


REFUSED = {
    "a wrong field": (VERL, "reward_model.truth", "'reward_model.style', 'reward_model.ground_truth'"),
    "a path through text": (VERL, "data_source.x", "has no column 'data_source.x'; set `answer` to one of"),
    "a missing struct": (
        VERL | {"reward_model": None},
        "reward_model.ground_truth",
        "to one of its columns: .*'reward_model'",
    ),
    "a struct": (VERL, "reward_model", "of its fields: 'reward_model.style', 'reward_model.ground_truth'$"),
    "a struct with an odd name": (VERL | {"x": {"a\nb": 1}}, "x", r"to one of its fields: 'x\.a\\nb'$"),
    "a list of answers": (
        VERL | {"reward_model": {"ground_truth": ["2", "two"]}},
        "reward_model.ground_truth",
        "set `answer` to one item of the list, such as 'reward_model.ground_truth.0',",
    ),
    "an item past the end": (VERL | {"x": ["2"]}, "x.1", "has no column 'x.1'"),
    "a truth value": (
        VERL | {"x": True},
        "x",
        "got True; set `answer` to a column that spells it",
    ),
    "no answer": (
        VERL | {"x": None},
        "x",
        "got None; set `answer` to a column with a text",
    ),
    "NaN": (
        VERL | {"x": float("nan")},
        "x",
        "got nan; set `answer` to a column with a text",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", [JSONL, HuggingFaceDataset])
@pytest.mark.usefixtures("parquet")
def test_an_answer_that_is_not_one_text_is_refused_with_what_there_is(
    tmp_path: Path, case: str, kind: type[PromptSource]
) -> None:
    row, answer, sentence = REFUSED[case]
    path = write(tmp_path / "a.jsonl", row)
    with pytest.raises(ValueError, match=sentence):
        list(kind(path, question="prompt", answer=answer))


@pytest.mark.parametrize("number", [Decimal("NaN"), Decimal("Infinity"), np.float32("inf"), np.bool_(True)])
def test_what_is_no_finite_number_is_refused_in_every_type(number: Any) -> None:
    from grpo_pl.prompts.rows import gold_text

    with pytest.raises(ValueError, match=r"^here: expected a string or a number in column 'x', got"):
        gold_text(number, "x", "here")
