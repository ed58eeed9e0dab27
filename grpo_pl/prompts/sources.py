"""Sources of questions and answers: files and data sets."""

import codecs
import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, final

import numpy as np
from typing_extensions import override

from grpo_pl.prompts.rows import (
    csv_number,
    exactly,
    gold_text,
    messages_in,
    require_columns,
    short,
    value_in,
    whole,
)
from grpo_pl.system.refusal import ArgumentError, ConfigError, about


@dataclass(kw_only=True)
class Question:
    """One row of a source. Example: `Question(text="What is 2 + 3?", answer="5")`."""

    text: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    """The conversation that ends with `text`, each message with `role` and `content`; empty without one."""
    gold: dict[str, Any] = field(default_factory=dict, compare=False)
    """The gold answer as the data has it, by the name of its column; empty where `answer` alone is known."""


class PromptSource(ABC):
    """A finite, ordered collection of questions: row `i` is the same in every process and in every run."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows, at least one."""

    @abstractmethod
    def __getitem__(self, index: int) -> Question:
        """Row `index`; `IndexError` past the end."""


@final
class JSONL(PromptSource):
    """The rows of a JSON Lines file; empty lines do not count.

    Args:
        path: The file, relative to the working directory.
        question: The column that holds the question, or chat messages that end with it; dots lead into nested
            columns.
        answer: The column that holds the gold answer, such as `reward_model.ground_truth`; null for a task
            without one.
        rows: Which rows to use, as `"start:stop"`, counted from 0; null is all of them.
    """

    def __init__(
        self, path: str, question: str = "question", answer: str | None = "answer", rows: str | None = None
    ) -> None:
        where = f"path={path}"
        try:
            content = Path(os.path.expanduser(path)).read_bytes()
        except FileNotFoundError as error:
            raise ArgumentError(f"{where}: there is no such file; name a JSON Lines file") from error
        except (OSError, ValueError) as error:  # a ValueError for a zero byte in the name
            reason = error.strerror if isinstance(error, OSError) else error
            raise ArgumentError(f"{where}: cannot be read ({reason}); name a JSON Lines file") from error
        numbered = enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1)
        lines = [(number, line) for number, line in numbered if line.strip()]
        if not lines:
            raise ArgumentError(f"{where}: expected one JSON object per line, got an empty file")
        self._questions: list[Question] = []
        for index in _select_rows(rows, len(lines), where):
            number, line = lines[index]
            place = f"{where}: line {number}"
            row = _parse_line(line, place)
            require_columns(row, question, answer, place)
            gold = None if answer is None else value_in(row, answer)
            if isinstance(gold, float):
                gold = value_in(_parse_line(line, place, exactly), str(answer))
            self._questions.append(_to_question(row, gold, question, answer, place))

    @override
    def __len__(self) -> int:
        return len(self._questions)

    @override
    def __getitem__(self, index: int) -> Question:
        return self._questions[index]


@final
class HuggingFaceDataset(PromptSource):
    """The rows of a data set that the `datasets` library reads; a local path needs no network.

    Args:
        path: A name on the hub, a local .jsonl, .json, .parquet, .csv or .arrow file, or a local folder,
            which `save_to_disk` may have made.
        split: The split. A single file has only `train`; a folder saved from one `Dataset` has only itself.
        name: The configuration on the hub, such as `main` of `openai/gsm8k`.
        question: The column that holds the question, or chat messages that end with it; dots lead into nested
            columns.
        answer: The column that holds the gold answer, such as `reward_model.ground_truth`; null for a task
            without one.
        rows: Which rows to use, as `"start:stop"`, counted from 0; null is all of them.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        name: str | None = None,
        question: str = "question",
        answer: str | None = "answer",
        rows: str | None = None,
    ) -> None:
        self._where = f"path={path} split={split}"
        self._question, self._answer = question, answer
        self._table = _load_table(path, split, name, self._where)
        if not len(self._table):
            raise ArgumentError(
                f"{self._where}: has no rows; set `path`, `name` or `split` to data with rows"
            )
        self._rows = _select_rows(rows, len(self._table), self._where)
        require_columns(self._table[self._rows[0]], question, answer, self._where)
        self._narrow = _narrow_float(self._table.features, answer)
        self._cells = _cells(self._table, path, split, answer)

    @override
    def __len__(self) -> int:
        return len(self._rows)

    @override
    def __getitem__(self, index: int) -> Question:
        place, row = f"{self._where}: row {self._rows[index]}", self._table[self._rows[index]]
        with about(self):
            require_columns(row, self._question, self._answer, place)
            gold = None if self._answer is None else value_in(row, self._answer)
            if isinstance(gold, float) and math.isfinite(gold):
                gold = whole(Decimal(str(self._narrow(gold))))
            if self._cells and gold is not None and not isinstance(gold, float):
                gold = csv_number(str(self._cells[self._rows[index]]))
            return _to_question(row, gold, self._question, self._answer, place)


_LOCAL_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


def _load_table(path: str, split: str, name: str | None, where: str) -> Any:
    """The `datasets.Dataset` at `path`."""
    import datasets  # here, because it takes more than a second

    local = Path(os.path.expanduser(path))
    if local.is_file() and local.suffix not in _LOCAL_FORMATS:
        endings = ", ".join(_LOCAL_FORMATS)
        raise ArgumentError(f"{where}: expected a file ending in one of {endings}, got {local.suffix!r}")
    saved = any((local / marker).is_file() for marker in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(str(local))
        elif local.is_file():
            loaded = datasets.load_dataset(_LOCAL_FORMATS[local.suffix], data_files=str(local), split=split)
        else:
            loaded = datasets.load_dataset(path, name, split=split)
    except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:
        reason = _first_line(error if error.__cause__ is None else error.__cause__)
        if "BatchSize must be greater than 0" in reason:
            reason = "the Parquet file has no rows"
        raise ArgumentError(f"{where}: cannot be loaded ({reason}); set `path`, `name` or `split`") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ArgumentError(f"{where}: there is no such split; set `split` to one of {sorted(loaded)}")
        loaded = loaded[split]
    return loaded.with_format(None)  # a saved one remembers its format, such as numpy


def _narrow_float(features: Any, answer: str | None) -> Callable[[float], object]:
    """Undo the widening of 32 or 16 bits to Python's floats, which turns 0.1 into 0.10000000149011612."""
    return {"float16": np.float16, "float32": np.float32}.get(_type_in(features, answer or ""), float)


def _cells(table: Any, path: str, split: str, answer: str | None) -> list[str | None]:
    """The numbers in the column of answers as they stand in a .csv file; empty without a file or numbers."""
    import datasets

    local = Path(os.path.expanduser(path))
    types = {name: _type_in(feature, "") for name, feature in table.features.items()}
    if local.suffix != ".csv" or not local.is_file() or not re.match("u?int|float", types.get(answer, "")):
        return []
    read = datasets.load_dataset("csv", data_files=str(local), split=split, converters={answer: str})
    return list(read.with_format("arrow")[:][answer].to_pylist())


def _type_in(feature: Any, column: str) -> str:
    """The type of a column, found as `value_in` finds the column; empty if it is none of one value."""
    import datasets

    if not column:
        return str(feature.dtype) if isinstance(feature, datasets.Value) else ""
    parts = column.split(".")
    if isinstance(feature, datasets.List | datasets.LargeList | datasets.Sequence):
        feature = {parts[0]: feature.feature}
    for end in range(len(parts), 0, -1):
        if isinstance(feature, Mapping) and (head := ".".join(parts[:end])) in feature:
            return _type_in(feature[head], ".".join(parts[end:]))
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [f"no rows: {type(error).__name__}"])[0].rstrip(".")


def _select_rows(rows: str | None, total: int, where: str) -> range:
    """The rows of `"start:stop"`, either side optional; a stop past the end is refused, not cut."""
    match = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})", ":" if rows is None else rows)
    start, stop = (int(match[1] or 0), int(match[2] or total)) if match else (0, 0)
    if not start < stop <= total:
        raise ArgumentError(
            f'{where}: expected rows="start:stop" with 0 <= start < stop <= {total}, got {rows!r}; '
            "set `rows`, in quotes"
        )
    return range(start, stop)


def _parse_line(line: bytes, where: str, decimals: Callable[[str], object] = float) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        row = json.loads(text, object_pairs_hook=_without_repeats, parse_float=decimals)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{where} is not UTF-8 at its byte {error.start}; convert the file") from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{where} is not JSON ({error}); write one JSON object per line") from error
    if not isinstance(row, dict):
        raise ArgumentError(f"{where}: expected a JSON object, got {type(row).__name__}; write one per line")
    return row


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ConfigError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return row


def _to_question(
    row: Mapping[str, Any], gold: object, question: str, answer: str | None, where: str
) -> Question:
    """The question of a row, whose gold answer has been read."""
    value, gold = value_in(row, question), "" if answer is None else gold_text(gold, str(answer), where)
    messages = messages_in(value, question, where)
    text = messages[-1]["content"] if messages else value
    if not isinstance(text, str):
        raise ArgumentError(
            f"{where}: expected a string in column {question!r}, got {short(text)}; set `question`"
        )
    if not text.strip():
        raise ArgumentError(f"{where}: the question in column {question!r} is blank; repair the row")
    conversation = "".join(message["content"] for message in messages)
    for column, characters in ((question, conversation or text), (answer, gold)):
        try:
            characters.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"{where}: column {column!r} holds half of a surrogate pair; repair the row"
            ) from error
    metadata = {column: value for column, value in row.items() if column not in (question, answer)}
    own = {} if answer is None else {answer: value_in(row, answer)}
    return Question(text=text, answer=gold, metadata=metadata, messages=messages, gold=own)
