"""Verdicts on answers to the tasks of reasoning-gym, in a worker process; the library's own ones, mended.

As version 0.1.25 has them, some verifiers evaluate the answer as Python, some take any text for right, and
many pay up to 0.05 for any text. So an answer that says the same as the gold one is right, whatever its
format; of the tasks in `_OWN` ours is the whole verdict; the others ask the library, unless the answer has
characters that no right one has.
"""

import ast
import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from decimal import Decimal
from fractions import Fraction
from io import StringIO
from typing import Any

import reasoning_gym

from grpo_pl.rewards.numerals import last_number

_CONSOLATION = 0.05
"""The most that a verifier of the library pays for an answer of no merit."""

Entry = Mapping[str, Any]


def score(task: str, config: Mapping[str, Any], entry: Entry, gold: str, answer: str, partial: bool) -> float:
    """1 for a right answer, else 0, or with `partial` what the library pays for one that is partly right.

    Raises:
        Exception: Whatever the library's verifier raises on this answer.
    """
    kind = entry["metadata"]["source_dataset"]  # the part of a composite task
    answer = _bare(answer)
    if answer and gold and meaning(answer) == meaning(gold):
        return 1.0
    if meaning(answer) == ():
        return 0.0
    if kind in _OWN:
        return float(_OWN[kind](answer, entry))
    if kind in _ALPHABETS and not _ALPHABETS[kind](answer):
        return 0.0
    paid = _paid(task, config, entry, answer)
    if paid >= 1.0:
        return 1.0
    share = len(gold) / len(answer) if gold in answer else 0.0  # which it pays: half of 1 to 12, for a gold 1
    return paid if partial and paid > _CONSOLATION and not math.isclose(paid, share) else 0.0


def takes_gold(task: str, config: Mapping[str, Any], entry: Entry, gold: str) -> bool:
    """Whether the verifier takes the gold answer for right; where there is none, whether it runs at all.

    Raises:
        Exception: Whatever the library's verifier raises.
    """
    if entry["metadata"]["source_dataset"] in _OWN:
        return score(task, config, entry, gold, gold, partial=False) == 1.0
    return _paid(task, config, entry, gold or "[]") >= 1.0 or not gold


def _paid(task: str, config: Mapping[str, Any], entry: Entry, answer: str) -> float:
    """What the library pays for an answer."""
    kind = entry["metadata"]["source_dataset"]
    with redirect_stdout(StringIO()):
        return float(_dataset(task, config, kind).score_answer(_SPELLINGS.get(kind, str)(answer), entry))


def meaning(text: str) -> object:
    """What an answer says: equal for the same number, truth value, list or table in another spelling.

    A table is its rows of words, so that white space does not count, except for line ends.
    """
    text = _bare(text)
    number = _number(text)
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


def _bare(text: str) -> str:
    """The text without white space and one pair of marks around it: a code block, code, bold or dollars."""
    match = _MARKS.fullmatch(text.strip())
    return match[str(match.lastgroup)].strip() if match else text.strip()


_MARKS = re.compile(
    r"```\w*\n(?P<block>.*)```|`(?P<code>[^`]*)`|\*\*(?P<bold>.*)\*\*|\$(?P<math>[^$]*)\$", re.DOTALL
)


def _number(text: str) -> Decimal | None:
    """The value of a decimal number: `1,234.50`, `+5`, `12.`, `$3`, `126°`."""
    text = text.replace("\N{MINUS SIGN}", "-").removeprefix("$").removesuffix("°")
    return Decimal(text.replace(",", "")) if _DECIMAL.fullmatch(text) else None


_DECIMAL = re.compile(r"[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)")


_UNREADABLE = ValueError, SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError


def _literal(text: str) -> object:
    """The value of a text that is JSON or a Python literal; None for any other."""
    for read in (json.loads, ast.literal_eval):
        with warnings.catch_warnings(action="ignore"), suppress(*_UNREADABLE):
            return read(text)
    return None


def _cells(value: object) -> object:
    if isinstance(value, dict):
        return frozenset((str(key), _cells(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_cells, value))
    return _leaf(str(value))


def _leaf(word: str) -> object:
    number = _number(word)
    return word if number is None else number


def _roots(answer: str, entry: Entry) -> bool:
    """Whether these are all real roots, to four decimals as the question rounds them."""
    roots = entry["metadata"]["real_solutions"]
    try:
        given = sorted(map(float, answer.split(",")))
    except ValueError:
        return False
    close = (
        math.isclose(a, b, rel_tol=0.0, abs_tol=2e-4) for a, b in zip(given, sorted(roots), strict=False)
    )
    return len(given) == len(roots) > 0 and all(close)


def _probability(answer: str, entry: Entry) -> bool:
    """Whether the probability is right within 1e-4, as in the library, and within 1 %."""
    exact = Fraction(**entry["metadata"]["rational"])
    value = _evaluated(answer.rstrip("%"))
    if value is None:
        return False
    error = abs((value / 100 if answer.endswith("%") else value) - exact)
    return error <= Fraction(1, 10_000) and error <= exact / 100


def _arithmetic(answer: str, entry: Entry) -> bool:
    """Whether an expression has the target's value and uses each number of the puzzle once."""
    metadata = entry["metadata"]
    answer = answer.translate(_SIGNS)
    if re.search(r"[^0-9\s+\-*/()]", answer):
        return False
    used = sorted(map(int, re.findall(r"[0-9]{1,9}", answer)))
    return used == sorted(metadata["numbers"]) and _evaluated(answer) == metadata.get("target", 24)


def _evaluated(expression: str) -> Fraction | None:
    """The value of a term of the four operations; None for any other text."""
    with warnings.catch_warnings(action="ignore"), suppress(*_UNREADABLE):
        return _term(ast.parse(expression.strip(), mode="eval").body)
    return None


_SIGNS = {
    ord("\N{MULTIPLICATION SIGN}"): "*",
    ord("\N{MIDDLE DOT}"): "*",
    ord("\N{DIVISION SIGN}"): "/",
    ord("\N{MINUS SIGN}"): "-",
}
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _term(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_term(operand)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATIONS:
            return _OPERATIONS[type(kind)](_term(left), _term(right))
    raise ValueError(f"{ast.dump(node)} is no term")


def _never(answer: str, entry: Entry) -> bool:  # noqa: ARG001 - only what says the same as the gold is right
    return False


def _one_of(answer: str, entry: Entry) -> bool:
    return meaning(answer) in map(meaning, entry["metadata"]["valid_answers"])


def _last(answer: str, entry: Entry) -> bool:
    return last_number(answer) == last_number(entry["answer"])


_OWN: dict[str, Callable[[str, Entry], bool]] = {
    "binary_matrix": _never,  # evaluates the answer
    "coin_flip": _probability,  # 0 is right for a chance of 2**-15
    "countdown": _arithmetic,  # evaluates the answer
    "game_of_life": _never,  # cells beside the board do not count
    "game_of_life_halting": _never,  # any text is right
    "gsm_symbolic": _last,  # -5 is right for 5
    "n_queens": _one_of,  # evaluates the answer
    "number_sorting": _never,  # each number may be wrong by 1
    "polynomial_equations": _roots,  # without real roots any text is right
    "puzzle24": _arithmetic,  # evaluates the answer; other numbers than the puzzle's are right
    "spiral_matrix": _never,  # evaluates the answer
    "string_insertion": _never,  # evaluates the answer
}

_FUNCTION = re.compile(r"a?(?:sin|cos|tan)h?|cot|sec|csc|exp|log|ln|sqrt|Abs|pi")


def _is_algebra(answer: str) -> bool:
    """Whether SymPy reads this text as a formula and nothing else: its parser evaluates Python."""
    names = re.findall(r"[A-Za-z_]\w*", answer)
    known = all(len(name) == 1 or _FUNCTION.fullmatch(name) for name in names)
    return known and re.fullmatch(r"[A-Za-z0-9\s+\-*/().]*", answer) is not None


_ALPHABETS: dict[str, Callable[[str], object]] = {
    "complex_arithmetic": re.compile(r"[-+0-9.eEij()\s]*").fullmatch,  # nan is right for any number
    "intermediate_integration": _is_algebra,
    "polynomial_multiplication": _is_algebra,
    "quantum_lock": re.compile(r"(?:[A-Ca-c]|->|[→,\s\-])*").fullmatch,  # reads the letters of any prose
    "simple_integration": _is_algebra,
    "sokoban": re.compile(r"[LDUR\s]*").fullmatch,  # plays the letters of any prose
}
_SPELLINGS: dict[str, Callable[[str], str]] = {
    "prime_factorization": lambda answer: re.sub(
        r"[*xX\N{MIDDLE DOT}]|\\times|\\cdot", "\N{MULTIPLICATION SIGN}", answer
    ),
}

_datasets: dict[str, Any] = {}


def _dataset(task: str, config: Mapping[str, Any], kind: str) -> Any:
    """The library's task, or of a composite one the part of this kind; kept from the first call on."""
    if task == "composite":
        config = next(part.config for part in config["datasets"] if part.name == kind)
    key = f"{kind} {config!r}"
    if key not in _datasets:
        _datasets[key] = reasoning_gym.create_dataset(kind, **(dict(config) | {"size": 1, "seed": 0}))
    return _datasets[key]
