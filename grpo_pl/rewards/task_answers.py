"""What an answer to a generated task says, however it is spelled. Imports nothing heavy."""

import ast
import json
import re
import warnings
from contextlib import suppress
from decimal import Decimal


def answer_of(response: str) -> str:
    """The answer of a response as it is spelled; empty if it has none."""
    text = response.rpartition("</think>")[2]
    _, tag, tagged = text.rpartition("<answer>")
    if tag:
        return tagged.partition("</answer>")[0].strip() or '""'  # as equations without a root ask for
    return text.strip()


def meaning(text: str) -> object:
    """What an answer says: equal for the same number, truth value, list or table in another spelling.

    A table is its rows of words, so that white space does not count, except for line ends. A full stop after
    a last word does not count either.
    """
    text = without_stop(bare(text))
    number = decimal(text)
    if number is not None:
        return number
    if text.casefold() in ("true", "false", "yes", "no"):
        return text.casefold()
    value = _literal(text)
    if isinstance(value, str):
        return meaning(value)
    if isinstance(value, list | tuple):
        return _cells(value) if any(isinstance(row, list | tuple) for row in value) else (_cells(value),)
    if isinstance(value, dict):
        return _cells(value)
    return tuple(tuple(map(_leaf, line.split())) for line in text.splitlines() if line.strip())


def without_stop(text: str) -> str:
    """The text without a full stop after its last word, if a word of letters is its end."""
    return _STOP.sub("", text)


_STOP = re.compile(r"(?<=[^\W\d_])\.\Z")


def bare(text: str) -> str:
    """The text without white space and one pair of marks around it: a code block, code, bold or dollars."""
    match = _MARKS.fullmatch(text.strip())
    return match[str(match.lastgroup)].strip() if match else text.strip()


_MARKS = re.compile(
    r"(?:```\w*\n(?P<block>.*)```|`(?P<code>[^`]*)`|\*\*(?P<bold>.*)\*\*|\$(?P<math>[^$]*)\$)\.?", re.DOTALL
)


def decimal(text: str) -> Decimal | None:
    """The value of a decimal number: `1,234.50`, `+5`, `12.`, `$3`, `126°`."""
    text = text.replace("\N{MINUS SIGN}", "-").removeprefix("$").removesuffix("°")
    return Decimal(text.replace(",", "")) if _DECIMAL.fullmatch(text) else None


_DECIMAL = re.compile(r"[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)")


UNREADABLE = ValueError, SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError


def _literal(text: str) -> object:
    """The value of a text that is JSON or a Python literal without comments; None for any other."""
    for read in (json.loads,) if "#" in text else (json.loads, ast.literal_eval):
        with warnings.catch_warnings(action="ignore"), suppress(*UNREADABLE):
            return read(text)
    return None


def _cells(value: object) -> object:
    if isinstance(value, dict):
        return frozenset((str(key), _cells(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_cells, value))
    return _leaf(str(value))


def _leaf(word: str) -> object:
    number = decimal(word)
    return word if number is None else number
