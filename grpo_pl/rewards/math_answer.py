"""The reward for mathematics with symbolic answers; the only importer of math_verify."""

import logging
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, final

from typing_extensions import override

from grpo_pl.rewards.base import Verifier
from grpo_pl.rewards.numerals import ascii_numbers, plain_number
from grpo_pl.types import Prompt, Sample

_logger = logging.getLogger(__name__)

_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_MATH_DELIMITERS = ("$", r"\(", r"\[")


@final
class MathAnswer(Verifier):
    r"""1 if the answer equals the gold answer as mathematics, else 0, by math-verify (`0.5`, `1/2` agree).

    The answer is the last `\boxed{...}`, else what follows the last `####`, else the last expression or
    number. The gold answer likewise, except that a text with neither mark is an answer as a whole. The unit
    of a number may be spelled out. A response that takes longer than `timeout_s` to parse or to compare
    scores 0; a gold answer that takes longer to parse counts as unreadable.

    The time limit is a signal, which works in the main thread only. In any other thread there is none,
    and one response such as `7^{10^{10}}` can hang: score there in a process of its own.

    Args:
        max_chars: only the end of a response, of this many characters, is read.
        timeout_s: limit in whole seconds of CPU time of the process for each parse and each comparison.
        on_error: unlike other rewards this one abstains, since SymPy may fail on what a response happens to
            hold. A math-verify that fails on everything is refused at construction.
    """

    def __init__(
        self,
        *,
        max_chars: int = 4000,
        timeout_s: int = 3,
        on_error: Literal["raise", "abstain"] = "abstain",
        **kwargs: Any,
    ) -> None:
        super().__init__(on_error=on_error, **kwargs)
        if max_chars < 1 or timeout_s < 1:
            raise ValueError(f"max_chars is {max_chars}, timeout_s is {timeout_s}; both must be at least 1.")
        self.max_chars = max_chars
        self.timeout_s = timeout_s
        try:
            import math_verify  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("MathAnswer needs math-verify: pip install grpo_pl[math]") from error
        if not _equal(r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", self._limit_s):
            raise RuntimeError(
                "math-verify finds 1/2 unequal to 0.5: reinstall it, pip install grpo_pl[math]"
            )

    @override
    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._score(sample) for sample in samples]

    @override
    def can_score(self, prompt: Prompt) -> bool:
        parsed = _parse(_gold_math(prompt.answer), self._limit_s)
        return bool(parsed) and not isinstance(parsed[0], str)

    @override
    def extract(self, response: str) -> str | None:
        parsed = _parse(self._response_math(response), self._limit_s)
        return _spell(parsed) if parsed else None

    def _score(self, sample: Sample) -> float | None:
        if not self.can_score(sample.prompt):
            return None
        gold, answer = _gold_math(sample.prompt.answer), self._response_math(sample.response)
        return float(_equal(gold, answer, self._limit_s))

    def _response_math(self, response: str) -> str:
        tail = ascii_numbers(response[-self.max_chars :])
        return _marked_math(tail) or tail

    @property
    def _limit_s(self) -> int | None:
        return self.timeout_s if threading.current_thread() is threading.main_thread() else None


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


class _OutOfTimeError(BaseException):
    """Not an Exception: SymPy catches those wherever it tries one way after the other."""


@contextmanager
def _time_limit(seconds: int | None) -> Iterator[None]:
    """Raise _OutOfTimeError after so many seconds of computing, and again and again until somebody hears it.

    Unlike math-verify's own limit, which counts seconds on the clock, so that a busy machine makes right
    answers wrong, and rings once, which is lost where it rings inside a finalizer.
    """
    if seconds is None:
        yield
        return

    def ring(*_: object) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@lru_cache(maxsize=16384)
def _parse(math: str, limit_s: int | None) -> tuple[Any, ...]:
    """The expressions that math-verify finds in a text, then the text that it read; empty if none."""
    import math_verify

    try:
        with _time_limit(limit_s):
            return tuple(math_verify.parse(math, parsing_timeout=None, raise_on_error=True))
    except _OutOfTimeError:
        _logger.warning("math-verify could not parse within %s s: %.200r", limit_s, math)
        return ()


@lru_cache(maxsize=16384)
def _equal(gold: str, answer: str, limit_s: int | None) -> bool:
    import math_verify

    golds, answers = list(_parse(gold, limit_s)), list(_parse(answer, limit_s))
    try:
        with _time_limit(limit_s):
            return bool(math_verify.verify(golds, answers, timeout_seconds=None, raise_on_error=True))
    except _OutOfTimeError:
        _logger.warning("math-verify could not compare within %s s: %.200r", limit_s, answer)
        return False


def _spell(parsed: tuple[Any, ...]) -> str:
    from sympy import Eq, Float, Rational, Symbol  # type: ignore[import-untyped]

    expression = parsed[0]
    if isinstance(expression, Eq) and isinstance(expression.lhs, Symbol):
        expression = expression.rhs
    try:
        return str(Rational(str(expression)) if isinstance(expression, Float) else expression)
    except (ValueError, RecursionError):  # too long or too deep to print: the text stands for itself
        return str(parsed[-1])
