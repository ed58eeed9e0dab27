"""Compares answers as mathematics, in a worker process; the only importer of math_verify.

Nothing in this module has a limit: SymPy 1.14 computes what math-verify 0.9 reads, and a short text can name
a number that no memory holds.
"""

import logging
import re
from functools import lru_cache
from typing import Any

import math_verify
from sympy import Eq, Float, Rational, Symbol  # type: ignore[import-untyped]

from grpo_pl.rewards.answers import find_answer, gold_answer, has_words
from grpo_pl.rewards.numerals import ascii_numbers
from grpo_pl.rewards.plain import plain_text
from grpo_pl.rewards.quantities import (
    CHANGED,
    Quantity,
    is_equation,
    quantity,
    same,
    same_in_base,
    sought_value,
)

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it was given no time limit

_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$|\*\*(?![\w(])|(?<![\w)])\*\*|`")
_LATEX = {
    "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "<=": r"\le ", ">=": r"\ge ",
    "≠": r"\ne ", "\N{UNION}": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ",
    "\N{MULTIPLICATION SIGN}": r"\times ", "·": r"\cdot ", "÷": "/", "°": r"^\circ ", "**": "^", "²": "^2",
    "³": "^3", "½": r"\frac{1}{2}",
}  # fmt: skip
_TO_LATEX = re.compile("|".join(map(re.escape, _LATEX)))
_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)|√\s*(?:\(([^()]*)\)|([0-9]+|[a-z]))")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_RELATION = re.compile(r"\\(?:le|ge|leq|geq|lt|gt|leqslant|geqslant|sim|neq?|not)(?![A-Za-z])|[<>≠]|!=")
_MATRIX = re.compile(r"\\(begin|end)\{(?:b|B|small)?matrix\}")
_TWO_NUMBERS = re.compile(r"(?<!frac )(?<![0-9])[0-9]+(?:\s+|\s*#\s*)[0-9]")
_SEVERAL = re.compile(  # `4, 5`, `{4, 5}`, `4 | 5`, `6 feet 2 inches`
    r"[,;](?![0-9]{3})|[0-9]\s*(?:\||\\mid|\\vert)\s*-?[0-9]|[0-9]\s*[A-Za-z]{2,}\.?,?\s+(?:and\s+)?[0-9]"
)
_APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])|≈")
_UNIT_OF_PI = re.compile(
    r"(?<=[πi])\s+(?:\\(?:text|mathrm)\{\s*)?(?:square |cubic |sq\.? )?(?:units?|cm|mm|km|in|ft|inches|feet|"
    r"meters?|centimeters?|m(?=[\^²³}]))(?:\s?\}?\s?\^\s?\{?[23]\}?|[²³])?\}?\s*\Z"
)
_NAME = re.compile(r"\s*(?:[A-Za-z]|\\[a-z]+)?\s*")
_BRACKET = re.compile(r"\\\{|\(")
_CHOICE = re.compile(r"\(?([a-j])\).*|([a-j])[.:].+")


def score(answer: str, response: str) -> float | None:
    """1 if the answer of the response equals the gold one, else 0; None if the gold one is unreadable."""
    if not is_readable(answer):
        return None
    found = find_answer(response)
    return float(found is not None and _equal(gold_answer(answer), found))


@lru_cache(maxsize=256)
def is_readable(answer: str) -> bool:
    """Whether a gold answer is mathematics."""
    gold = gold_answer(answer)
    if _quantity(gold) is not None:
        return True
    parsed = _parse(_as_latex(gold))
    return bool(parsed) and not isinstance(parsed[0], str)


def extract(response: str) -> str | None:
    """The answer of a response, spelled so that equal numbers are equal strings; None without one."""
    found = find_answer(response)
    if not found:
        return None
    number = _quantity(found)
    if number is not None:
        return str(number)
    parsed = () if has_words(found) else _parse(_as_latex(found))
    return _spell(parsed) if parsed else _words(found) or None


@lru_cache(maxsize=1024)  # the responses of a group share their gold answer, and often their own
def _quantity(text: str) -> Any:
    return quantity(text)


@lru_cache(maxsize=256)
def _parse(math: str) -> tuple[Any, ...]:
    """The expressions that math-verify finds in a text, then the text that it read; empty if none."""
    return tuple(math_verify.parse(math, parsing_timeout=None, raise_on_error=True))


@lru_cache(maxsize=1024)  # many responses of a group give the same answer, and dynamic sampling scores twice
def _equal(gold: str, answer: str) -> bool:
    """Numbers are compared exactly, texts letter by letter, and only what is left by math-verify."""
    answer = _UNIT_OF_PI.sub("", answer)
    answer = answer if is_equation(gold) else sought_value(_one_side(gold, answer))
    first, second = _quantity(gold), _quantity(answer)
    if first is not None and second is not None:
        return same(first, second)
    if (in_base := same_in_base(gold, answer)) is not None:
        return in_base
    if (text := _words(gold)) and text == _words(answer):
        return True
    if _differ_in_kind(gold, answer):
        return False
    gold, answer = _as_latex(gold), _as_latex(answer)
    if equal_in_latex(gold, answer):
        return True
    return _RELATION.search(answer) is not None and equal_in_latex(answer, gold)  # `x < 3` only as the gold


def _one_side(gold: str, answer: str) -> str:
    r"""Of `\frac{\pi}{6} \approx 0.52` the exact side, or the other where the gold answer is a decimal."""
    exact, *rounded = _APPROXIMATELY.split(answer, maxsplit=1)
    number = _quantity(gold)
    if not rounded or _NAME.fullmatch(exact) or (isinstance(number, Quantity) and number.decimal()):
        return answer
    return exact


def _differ_in_kind(gold: str, answer: str) -> bool:
    """Whether answers differ in what math-verify overlooks: `72` and `x > 72`, `(1, 2)` and `{1, 2}`."""
    a_number = (_quantity(gold) is None) != (_quantity(answer) is None)
    return (
        has_words(gold)
        or has_words(answer)
        or _TWO_NUMBERS.search(answer) is not None
        or is_equation(gold) != is_equation(answer)
        or (a_number and _RELATION.search(gold + answer) is not None)
        or (_quantity(gold) is not None and _is_more(plain_text(answer)))
        or {bracket[0] if (bracket := _BRACKET.match(text)) else "" for text in (gold, answer)}
        >= {"(", "\\{"}
    )


def _is_more(answer: str) -> bool:
    """Whether an answer is more than one number, or a multiple of one: `4 | 5`, `17 dozen`."""
    return _SEVERAL.search(answer) is not None or CHANGED.search(answer) is not None


def equal_in_latex(gold: str, answer: str) -> bool:
    r"""Whether math-verify finds two texts equal, such as `\boxed{\frac{1}{2}}` and `\boxed{0.5}`."""
    golds, answers = list(_parse(gold)), list(_parse(answer))
    return bool(math_verify.verify(golds, answers, timeout_seconds=None, raise_on_error=True))


def _words(text: str) -> str:
    """A text without case, spaces and dress; `b` for `(B)` and for `B) 72`."""
    text = " ".join(plain_text(text).casefold().split()).strip(".,;:")
    choice = _CHOICE.fullmatch(text)
    return (choice[1] or choice[2]) if choice else text


def _as_latex(text: str) -> str:
    """An answer in LaTeX that math-verify reads whole."""
    number = _quantity(text)
    if isinstance(number, Quantity):
        return rf"\boxed{{{number}}}"
    text = _DELIMITERS.sub("", ascii_numbers(text)).strip().rstrip(".,;:")
    text = _MATRIX.sub(r"\\\1{pmatrix}", text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text)
    text = _PI.sub(r"\\pi ", _TO_LATEX.sub(lambda match: _LATEX[match[0]], text))
    return rf"\boxed{{{text}}}"


def _spell(parsed: tuple[Any, ...]) -> str:
    expression = parsed[0]
    if isinstance(expression, Eq) and isinstance(expression.lhs, Symbol):
        expression = expression.rhs
    try:
        return str(Rational(str(expression)) if isinstance(expression, Float) else expression)
    except (ValueError, RecursionError):  # too long or too deep to print: the text stands for itself
        return str(parsed[-1])
