"""Verdicts on answers to the tasks of reasoning-gym, in a worker process; the library's own ones, mended.

As version 0.1.25 has them, some verifiers evaluate the answer as Python, some take any text for right, and
many pay up to 0.05 for any text. So an answer that says the same as the gold one is right, whatever its
format; of the tasks in `_OWN` ours is the whole verdict; the others ask the library, unless the answer has a
form that no right one has (`_FORMS`), and what it takes for right must not say more (`_NO_MORE`).
"""

import ast
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

from grpo_pl.rewards.quantities import Quantity, quantity
from grpo_pl.rewards.task_answers import UNREADABLE, answer_of, bare, decimal, meaning, without_stop
from grpo_pl.types import Prompt

_CONSOLATION = 0.05
"""The most that a verifier of the library pays for an answer of no merit."""

Entry = Mapping[str, Any]


def score(task: str, config: Mapping[str, Any], entry: Entry, gold: str, answer: str, partial: bool) -> float:
    """1 for a right answer, else 0, or with `partial` what the library pays for one that is partly right.

    Raises:
        Exception: Whatever the library's verifier raises on this answer.
    """
    kind = entry["metadata"]["source_dataset"]  # the part of a composite task
    answer = bare(answer)
    if answer and gold and meaning(answer) == meaning(gold):
        return 1.0
    if meaning(answer) == ():
        return 0.0
    if not gold.endswith("."):
        answer = without_stop(answer)
    if kind in _OWN:
        return float(_OWN[kind](answer, entry))
    if kind in _FORMS and not _FORMS[kind](answer):
        return 0.0
    paid = _paid(task, config, entry, answer)
    if paid >= 1.0:
        return float(kind not in _NO_MORE or _NO_MORE[kind](answer, entry))
    share = len(gold) / len(answer) if gold in answer else 0.0  # which it pays: half of 1 to 12, for a gold 1
    return paid if partial and paid > _CONSOLATION and not math.isclose(paid, share) else 0.0


def verdict(prompt: Prompt, response: str) -> float:
    """1 for a right answer to a prompt of `ReasoningGym`, else 0, as where the library's verifier raises."""
    if missing := {"task", "config", "entry"} - prompt.metadata.keys():
        raise ValueError(f"the prompt has no {min(missing)} in its metadata: set data.train to ReasoningGym")
    puzzle = {key: prompt.metadata[key] for key in ("task", "config", "entry")}
    try:
        return score(**puzzle, gold=prompt.answer, answer=answer_of(response), partial=False)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as in TaskScore
        return 0.0


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
    if "#" in expression:  # a comment
        return None
    with warnings.catch_warnings(action="ignore"), suppress(*UNREADABLE):
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


def _quantity(answer: str, entry: Entry) -> bool:
    """Whether the answer is one number, also in a sentence, and the right one: `324 or 5` is none."""
    given, gold = quantity(answer), quantity(entry["answer"])
    return isinstance(given, Quantity) and str(given) == str(gold)


def _exact(answer: str, entry: Entry) -> bool:
    return _scientific(answer) == Decimal(entry["answer"])


def _candidate(answer: str, entry: Entry) -> bool:
    """Whether this is the number of the list, to all 6 decimals or 16 digits that the question prints."""
    value = _scientific(answer)
    gold = entry["metadata"]["solution"]
    return value is not None and math.isclose(value, gold, rel_tol=1e-15, abs_tol=1e-6)


def _scientific(answer: str) -> Decimal | None:
    number = re.fullmatch(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]{1,3}", answer)
    return Decimal(answer) if number else decimal(answer)


_OWN: dict[str, Callable[[str, Entry], bool]] = {
    "binary_matrix": _never,  # evaluates the answer
    "coin_flip": _probability,  # 0 is right for a chance of 2**-15
    "countdown": _arithmetic,  # evaluates the answer
    "decimal_arithmetic": _exact,  # may be wrong by a unit of the operands' last digit
    "game_of_life": _never,  # cells beside the board do not count
    "game_of_life_halting": _never,  # any text is right
    "gsm_symbolic": _quantity,  # -5 is right for 5
    "n_queens": _one_of,  # evaluates the answer
    "number_format": _candidate,  # may be wrong by 0.01, and the candidates differ by less
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


_CONNECTIVES = "\N{LOGICAL AND}\N{LOGICAL OR}\N{RIGHTWARDS ARROW}\N{LEFT RIGHT ARROW}"


def _is_conclusion(answer: str) -> bool:
    """Whether this is one formula: the library reads the variables of any text that begins with one."""
    before, formula = "", re.sub(r"[A-Z]", "P", "".join(answer.split()))
    while formula != before:
        before, formula = formula, re.sub(rf"¬P|\(P(?:[{_CONNECTIVES}]P)*\)", "P", formula)
    return re.fullmatch(rf"P(?:[{_CONNECTIVES}]P)*", formula) is not None


def _are_turns(answer: str) -> bool:
    return all(re.fullmatch(r"[^\d\s]+\d*", turn) for turn in answer.split())


def _has_each_letter_once(answer: str) -> bool:
    letters = [pair.partition("=")[0].strip() for pair in answer.split(",")]
    return len(letters) == len(set(letters))


_COORDINATE = r"\s*[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?\s*"
_FORMS: dict[str, Callable[[str], object]] = {
    "advanced_geometry": re.compile(rf"{_COORDINATE}°?|\(?{_COORDINATE},{_COORDINATE}\)?").fullmatch,
    "complex_arithmetic": re.compile(r"[-+0-9.eEij()\s]*").fullmatch,  # nan is right for any number
    "cryptarithm": _has_each_letter_once,  # the last of several digits counts
    "fraction_simplification": re.compile(
        r"\$?\s*(?:[0-9]+\s*/\s*[0-9]+|\\d?frac\s*\{\s*[0-9]+\s*\}\s*\{\s*[0-9]+\s*\})\s*\$?"
    ).fullmatch,
    "intermediate_integration": _is_algebra,
    "kakurasu": re.compile(r"[01\s,|\[\]]*").fullmatch,  # reads the digits of any prose
    "polynomial_multiplication": _is_algebra,
    "propositional_logic": _is_conclusion,
    "quantum_lock": re.compile(r"(?:[A-Ca-c]|->|[→,\s\-])*").fullmatch,  # reads the letters of any prose
    "rubiks_cube": _are_turns,  # plays the turns in any prose
    "rush_hour": re.compile(r"(?:[A-Z][-+][0-9]+[\s,]*)*").fullmatch,  # plays the moves in any prose
    "simple_integration": _is_algebra,
    "sokoban": re.compile(r"[LDUR\s]*").fullmatch,  # plays the letters of any prose
    "survo": re.compile(r"[-+0-9\s]*").fullmatch,  # reads the numbers in any prose
    "time_intervals": re.compile(
        r"-?[0-9]+(?:\s*days?)?|-?[0-9]+ days?,\s*[0-9:.]+|[0-9]+:[0-9:.]+"
    ).fullmatch,  # reads only the first number, or two
}


def _roles(answer: str, entry: Entry) -> bool:
    """Whether the answer gives each name its role, and says nothing else."""
    return _assigned(answer) == _assigned(entry["answer"])


def _assigned(answer: str) -> list[tuple[str, ...]] | None:
    clauses = (part.strip() for part in re.split(r"[.,;\n]|\band\b", answer.casefold()))
    pairs = [re.fullmatch(r"(\w+)(?: is)? (?:an? )?\(?(\w+)\)?", clause) for clause in clauses if clause]
    found = [pair.groups() for pair in pairs if pair]
    return sorted(found) if len(found) == len(pairs) else None


def _variables(answer: str, entry: Entry) -> bool:
    """Whether an integral has no letters but its variable, a constant at the end, `C` and Euler's number."""
    answer = re.sub(r"\+\s*[A-Za-z]\s*\Z", "", answer)
    return set(re.findall(r"\b[A-Za-z]\b", answer)) <= {entry["metadata"]["variable"], "C", "E"}


def _letters(answer: str, entry: Entry) -> bool:
    return "".join(answer.split()).casefold() == "".join(entry["answer"].split()).casefold()


def _list(answer: str, entry: Entry) -> bool:
    gold: str = entry["answer"]
    return answer.count(",") == gold.count(",")


def _days(answer: str, entry: Entry) -> bool:
    return (":" in answer) == (":" in entry["answer"])


def _two_decimals(answer: str, entry: Entry) -> bool:
    """Whether each element is right to the two decimals that the question asks for."""
    with suppress(ValueError):
        pairs = zip(map(float, answer.split()), map(float, entry["answer"].split()), strict=True)
        return all(abs(a - b) < 0.00501 for a, b in pairs)
    return False


_NO_MORE: dict[str, Callable[[str, Entry], bool]] = {
    "figlet_font": _letters,
    "intermediate_integration": _variables,
    "knights_knaves": _roles,
    "letter_jumble": _letters,
    "pool_matrix": _two_decimals,  # each element may be wrong by 1 %
    "simple_integration": _variables,
    "spell_backward": _letters,
    "time_intervals": _days,
    "word_sorting": _list,
}
"""What an answer must be besides right by the library, which reads no further than the gold answer goes."""

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
