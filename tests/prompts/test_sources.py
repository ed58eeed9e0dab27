"""Files and data sets as sources of prompts: what is read, and what is wrong and where."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.questions import parse, write
from helpers.repository import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_pl.prompts import JSONL, HuggingFaceDataset, Question, ReasoningGym


def test_jsonl_keeps_order_and_other_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"question": "q0", "answer": "a0", "level": 3},
        {"question": "q1", "answer": "a1"},
    )
    source = JSONL(path)
    assert list(source) == [
        Question(text="q0", answer="a0", metadata={"level": 3}),
        Question(text="q1", answer="a1"),
    ]


@pytest.mark.parametrize(
    ("answer", "text"), [("7", "7"), (7, "7"), (0.5, "0.5"), (-3, "-3"), (10**40, "1" + "0" * 40)]
)
def test_jsonl_turns_numbers_into_the_answer_as_written(tmp_path: Path, answer: Any, text: str) -> None:
    assert JSONL(write(tmp_path / "a.jsonl", {"question": "q", "answer": answer}))[0].answer == text


def test_jsonl_renames_columns_and_may_have_no_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"problem": "p", "solution": "s"})
    assert JSONL(path, question="problem", answer="solution")[0] == Question(text="p", answer="s")
    assert JSONL(path, question="problem", answer=None)[0] == Question(
        text="p", answer="", metadata={"solution": "s"}
    )


def test_jsonl_skips_empty_lines_a_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question": "\xc3\xa9", "answer": "1"}\r\n\r\n  \n{"question": "b", "answer": "2"}'
    )
    assert [row.text for row in JSONL(str(path))] == ["é", "b"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(None, "01234"), ("1:3", "12"), (":2", "01"), ("3:", "34"), (":", "01234"), ("4:5", "4")],
)
def test_rows_select_a_half_open_slice(tmp_path: Path, rows: str | None, expected: str) -> None:
    path = write(tmp_path / "a.jsonl", *({"question": str(i), "answer": ""} for i in range(5)))
    assert "".join(row.text for row in JSONL(path, rows=rows)) == expected


@pytest.mark.parametrize(
    "rows", ["0:6", "3:3", "3:1", "-2:", "5:", "3", "", "a:b", "0:5:1", "0 : 5", "\u0660:\u0663"]
)
def test_rows_outside_the_file_are_refused_and_not_cut(tmp_path: Path, rows: str) -> None:
    path = write(tmp_path / "a.jsonl", *({"question": str(i), "answer": ""} for i in range(5)))
    with pytest.raises(
        ValueError, match=r'rows="start:stop" with 0 <= start < stop <= 5, got .*; set `rows`'
    ):
        JSONL(path, rows=rows)


GOOD = b'{"question": "q", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "one JSON object per line, got an empty file"),
        (b"\n \n", "one JSON object per line, got an empty file"),
        (
            GOOD + b"\n{oops\n",
            r"line 3 is not JSON \(Expecting property name.*; write one JSON object per line",
        ),
        (GOOD + b"[" * 100_000, "line 2 is not JSON .*recursion"),
        (GOOD + b"[1]", "line 2: expected a JSON object, got list"),
        (GOOD + b"null", "line 2: expected a JSON object, got NoneType"),
        (GOOD + b'{"question": "\xff"}', "line 2 is not UTF-8 at its byte 14; convert the file"),
        (
            b'{"problem": "q", "answer": "a"}',
            "line 1 has no column 'question'; set `question` to one of its columns: 'problem', 'answer'",
        ),
        (
            b'{"question": "q"}',
            "line 1 has no column 'answer'; set `answer` to one of its columns: 'question'",
        ),
        (b"{}", "line 1 has no column 'question'; set `question` to one of its columns: none"),
        (
            b'{"question": 5, "answer": "a"}',
            "line 1: expected a string in column 'question', got 5; set `question`",
        ),
        (
            b'{"question": "q", "answer": null}',
            "a string or a number in column 'answer', got None; set `answer`",
        ),
        (b'{"question": "q", "answer": true}', "a string or a number in column 'answer', got True"),
        (b'{"question": "q", "answer": NaN}', "a string or a number in column 'answer', got nan"),
        (b'{"question": "q", "answer": 1e999}', "a string or a number in column 'answer', got inf"),
        (b'{"question": "\\ud800", "answer": "a"}', "column 'question' holds half of a surrogate pair"),
    ],
)
def test_jsonl_says_what_is_wrong_and_where(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^path=.*a\.jsonl: .*{message}"):
        JSONL(str(path))


def test_jsonl_names_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^path=nowhere.jsonl: there is no such file; name a JSON"):
        JSONL("nowhere.jsonl")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\); name a JSON"):
        JSONL(str(tmp_path))


def test_a_long_value_does_not_flood_the_message(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a string") as caught:
        JSONL(write(tmp_path / "a.jsonl", {"question": ["x" * 10_000], "answer": ""}), answer=None)
    assert len(str(caught.value)) < 500


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_column = st.text(max_size=5) | _values
_objects = st.fixed_dictionaries({"question": _column, "answer": _column})
_json_lines = st.lists((_objects | _values).map(json.dumps), max_size=4).map(
    lambda lines: "\n".join(lines).encode()
)


@settings(max_examples=300)
@given(content=st.binary(max_size=60) | _json_lines, rows=st.none() | st.text("0123:", max_size=4))
def test_any_file_gives_text_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, rows: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    try:
        source = JSONL(str(path), rows=rows)
    except ValueError:
        return
    assert len(source) > 0
    for question in source:
        question.text.encode()
        question.answer.encode()


@pytest.fixture
def hub_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Five rows as a `datasets.Dataset`, with the library's cache inside `tmp_path`."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets.Dataset.from_list([{"question": f"q{i}", "answer": i, "level": i % 2} for i in range(5)])


@pytest.mark.parametrize("form", ["a.jsonl", "a.parquet", "a.csv", "folder", "saved", "saved_splits"])
def test_a_local_data_set_of_any_form_gives_the_same_rows(tmp_path: Path, hub_table: Any, form: str) -> None:
    path = tmp_path / form
    if form == "saved":
        hub_table.save_to_disk(path)
    elif form == "saved_splits":
        sys.modules["datasets"].DatasetDict(train=hub_table, test=hub_table.select([0])).save_to_disk(path)
    elif form == "folder":
        path.mkdir()
        hub_table.to_json(path / "train.jsonl")
    else:
        {"a.jsonl": hub_table.to_json, "a.parquet": hub_table.to_parquet, "a.csv": hub_table.to_csv}[form](
            path
        )
    source = HuggingFaceDataset(str(path), rows="1:4")
    assert list(source) == [
        Question(text=f"q{i}", answer=str(i), metadata={"level": i % 2}) for i in range(1, 4)
    ]
    assert source[-1].text == "q3"


def test_hugging_face_data_sets_say_what_is_wrong(tmp_path: Path, hub_table: Any) -> None:
    sys.modules["datasets"].DatasetDict(train=hub_table).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    hub_table.to_json(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("q")
    (tmp_path / "broken.jsonl").write_text("{oops")
    (tmp_path / "empty.csv").write_text("question,answer\n")
    head = r"^path=.* split=\w+: .*"
    with pytest.raises(ValueError, match=head + r"no such split; set `split` to one of \['train'\]"):
        HuggingFaceDataset(saved, split="test")
    with pytest.raises(ValueError, match=head + r"cannot be loaded .*test.*; set `path`, `name` or `split`"):
        HuggingFaceDataset(str(tmp_path / "a.jsonl"), split="test")
    with pytest.raises(
        ValueError, match=r"has no column 'q'; set `question` to one of .* 'question', 'answer'"
    ):
        HuggingFaceDataset(saved, question="q")
    with pytest.raises(ValueError, match=r"has no column 'gold'; set `answer` to one of"):
        HuggingFaceDataset(saved, answer="gold")
    with pytest.raises(ValueError, match=head + r"row 2: expected a string in column 'level', got 0"):
        HuggingFaceDataset(saved, question="level", rows="2:")[0]
    with pytest.raises(ValueError, match=head + r"0 <= start < stop <= 5, got '0:6'"):
        HuggingFaceDataset(saved, rows="0:6")
    with pytest.raises(ValueError, match=head + r"ending in one of .jsonl, .*, got '\.txt'"):
        HuggingFaceDataset(str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match=head + r"cannot be loaded"):
        HuggingFaceDataset(str(tmp_path / "broken.jsonl"))
    with pytest.raises(ValueError, match=head + r"cannot be loaded .*; set `path`"):
        HuggingFaceDataset(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=head + r"cannot be loaded .*no data"):
        HuggingFaceDataset(str(tmp_path / "empty.csv"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"needs the package .*: pip install 'grpo_pl\[tasks\]'"):
        ReasoningGym("leg_counting")


@pytest.mark.parametrize("name", ["JSONL", "HuggingFaceDataset", "Arithmetic", "ReasoningGym", "WorkedSums"])
def test_each_source_is_built_from_yaml_by_its_short_name(
    tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    path = write(tmp_path / "a.jsonl", *({"question": "q", "answer": "a"} for _ in range(5)))
    if name == "HuggingFaceDataset":
        request.getfixturevalue("hub_table")
    init_args = {
        "Arithmetic": "{operators: '+-', split: val, size: 3}",
        "WorkedSums": "{digits: 2, held_out: 5, split: val, size: 3}",
        "ReasoningGym": "{task: leg_counting, size: 3, config: {min_animals: 2}}",
    }.get(name, f"{{path: '{path}', rows: '1:4', answer: null}}")
    built = parse({"train": yaml.safe_load(f"{{class_path: {name}, init_args: {init_args}}}")})
    assert type(built.train).__name__ == name
    assert len(built.train) == 3


def test_the_gsm8k_overlay_trains_and_validates_on_different_rows(tmp_path: Path) -> None:
    overlay = yaml.safe_load((ROOT / "configs" / "task" / "gsm8k.yaml").read_text())
    data = overlay["data"]
    path = write(tmp_path / "a.jsonl", *({"question": f"q{i}", "answer": f"#### {i}"} for i in range(700)))
    for split in ("train", "val"):
        data[split]["init_args"]["path"] = path
    built = parse({key: data[key] for key in ("train", "val", "format")})
    train, val = ({row.text for row in source} for source in (built.train, built.val))
    assert (len(train), len(val)) == (600, 100)
    assert not train & val
    assert built.format.messages("Q")[-1]["content"].startswith("Q\nThink step by step")
    assert data["max_prompt_tokens"] == 256
