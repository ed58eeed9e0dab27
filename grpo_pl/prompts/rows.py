"""One row of a data set: nested columns by name, the conversation, the gold answer as text."""

import math
import re
from collections.abc import Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

from grpo_pl.system.refusal import ArgumentError

Messages = list[dict[str, str]]
"""A conversation, each message with `role` and `content`."""


def value_in(row: Any, column: str) -> Any:
    """The value in a column; LookupError without it.

    A dotted name leads into nested columns and lists: `reward_model.ground_truth`, `answers.0`. A column of
    that very name, dots included, comes first.
    """
    if isinstance(row, list) and column.partition(".")[0].isdecimal():
        row = {str(i): item for i, item in enumerate(row)}
    if not isinstance(row, Mapping):
        raise LookupError(column)
    if column in row:
        return row[column]
    parts = column.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if (head := ".".join(parts[:end])) in row:
            return value_in(row[head], ".".join(parts[end:]))
    raise LookupError(column)


def column_names(row: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    """The names of all columns, nested ones with dots."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from column_names(value, f"{inside}{name}.")
        else:
            yield f"{inside}{name}"


def require_columns(row: Mapping[str, Any], question: str, answer: str | None, where: str) -> None:
    """Refuse a row without the columns."""
    for key, column in (("question", question), ("answer", answer)):
        try:
            if column is not None:
                value_in(row, column)
        except LookupError as error:
            has = ", ".join(repr(name) for name in column_names(row)) or "none"
            raise ArgumentError(
                f"{where} has no column {column!r}; set `{key}` to one of its columns: {has}"
            ) from error


def exactly(spelling: str) -> Decimal | float:
    """A number of a JSON file with the digits that stand there; rounded where it is 0 or nearly so."""
    rounded = float(spelling)
    return Decimal(spelling) if 1e-300 < abs(rounded) < math.inf else rounded


def whole(number: Decimal) -> Decimal:
    """A number without the `.0` with which floats spell whole numbers."""
    return (number.to_integral_value() or Decimal(0)) if number == number.to_integral_value() else number


def csv_number(cell: str) -> str:
    """A number of a CSV file as it stands there; `1e3` becomes 1000 and `100.0`, a whole float, 100."""
    if re.fullmatch(r"\s*[+-]?([0-9]+\.0|[0-9.]+[eE][+-]?[0-9]+)\s*", cell):
        return format(whole(Decimal(cell.strip())), "f")
    return cell


def gold_text(value: object, column: str, where: str) -> str:
    """A gold answer as verifiers read it: text as it is, a number in plain decimals (`0.00005`, not `5e-05`).

    Refuses everything else: nothing, truth values, NaN and infinities, lists and nested columns.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Real | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return format(Decimal(str(value)), "f")
    fix = " to a column with a text or a finite number in every row, or repair this one"
    if isinstance(value, list):
        item = f"{column}.0"
        fix = f" to one item of the list, such as {item!r}, or give the data a column with one answer"
    elif isinstance(value, Mapping):
        fix = f" to one of its fields: {', '.join(map(repr, column_names(value, f'{column}.')))}"
    elif isinstance(value, bool | np.bool_ | date | time | timedelta):
        fix = " to a column that spells it as responses do, such as yes and no or 2026-01-31"
    raise ArgumentError(
        f"{where}: expected a string or a number in column {column!r}, got {short(value)}; set `answer`{fix}"
    )


def messages_in(value: object, column: str, where: str) -> Messages:
    """The chat messages in the column of the question, role and content alone; none where it is text.

    `datasets` gives a sequence of structs as a struct of lists; both are read.
    """
    if isinstance(value, Mapping) and all(isinstance(value.get(k), list) for k in ("role", "content")):
        pairs = zip(value["role"], value["content"], strict=False)
        value = [{"role": role, "content": content} for role, content in pairs]
    if not isinstance(value, list):
        return []
    turns = [(m.get("role"), m.get("content")) for m in value if isinstance(m, Mapping)]
    well_formed = all(isinstance(role, str) and isinstance(content, str) for role, content in turns)
    if not value or len(turns) < len(value) or not well_formed or turns[-1][0] != "user":
        raise ArgumentError(
            f"{where}: column {column!r}: expected a string, or messages with role and content of which the "
            f"last is the user's, got {short(value)}; set `question`"
        )
    return [{"role": str(role), "content": str(content)} for role, content in turns]


def short(value: object) -> str:
    """A value as messages show it."""
    return f"{value!r:.60}"
