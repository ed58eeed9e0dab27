"""Compares answers as mathematics, in a worker process; the only importer of math_verify.

Nothing in this module has a limit: a text such as `7^{10^{10}}` computes for ever or takes all memory.
"""

import logging
import re
from functools import lru_cache
from typing import Any

import math_verify
from sympy import Eq, Float, Rational, Symbol  # type: ignore[import-untyped]

from grpo_pl.rewards.numerals import ascii_numbers, plain_number

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it was given no time limit

_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_MATH_DELIMITERS = ("$", r"\(", r"\[")


def score(answer: str, response: str) -> float | None:
    """1 if the answer of the response equals the gold one, else 0; None if the gold one is unreadable."""
    return float(_equal(_gold_math(answer), _response_math(response))) if is_readable(answer) else None


def is_readable(answer: str) -> bool:
    """Whether a gold answer is mathematics."""
    parsed = _parse(_gold_math(answer))
    return bool(parsed) and not isinstance(parsed[0], str)


def extract(response: str) -> str | None:
    """The answer of a response, spelled so that equal numbers are equal strings; None without one."""
    parsed = _parse(_response_math(response))
    return _spell(parsed) if parsed else None


@lru_cache(maxsize=256)  # the responses of a group share their gold answer
def _parse(math: str) -> tuple[Any, ...]:
    """The expressions that math-verify finds in a text, then the text that it read; empty if none."""
    return tuple(math_verify.parse(math, parsing_timeout=None, raise_on_error=True))


@lru_cache(maxsize=1024)  # many responses of a group give the same answer, and dynamic sampling scores twice
def _equal(gold: str, answer: str) -> bool:
    golds, answers = list(_parse(gold)), list(_parse(answer))
    return bool(math_verify.verify(golds, answers, timeout_seconds=None, raise_on_error=True))


def _response_math(response: str) -> str:
    text = ascii_numbers(response)
    return _marked_math(text) or text


def _gold_math(answer: str) -> str:
    answer = ascii_numbers(answer)
    return _marked_math(answer) or _as_math(answer)


def _marked_math(text: str) -> str | None:
    """The answer that the text marks as such, as LaTeX that math-verify reads whole; None without a mark."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return rf"\boxed{{{plain_number(boxed) or boxed}}}"
    _, marker, rest = text.rpartition("####")
    lines = rest.strip().splitlines()
    return _as_math(lines[0]) if marker and lines else None


def _as_math(text: str) -> str:
    number = plain_number(text)
    if number is None and any(delimiter in text for delimiter in _MATH_DELIMITERS):
        return text
    return rf"\boxed{{{number or text}}}"


def _last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces are closed."""
    last = None
    open_braces: list[int | None] = []  # where the content of a box begins; None for any other brace
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_braces.append(token.end())
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and (last is None or start > last.start):
                last = slice(start, token.start())
    return None if last is None else text[last]


def _spell(parsed: tuple[Any, ...]) -> str:
    expression = parsed[0]
    if isinstance(expression, Eq) and isinstance(expression.lhs, Symbol):
        expression = expression.rhs
    try:
        return str(Rational(str(expression)) if isinstance(expression, Float) else expression)
    except (ValueError, RecursionError):  # too long or too deep to print: the text stands for itself
        return str(parsed[-1])
