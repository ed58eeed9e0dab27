r"""Finds the answer in a response: text in, a short piece of text out, in linear time. Imports nothing heavy.

Marks are `\boxed{}`, answer tags, `####` and `The answer is`; the last one whose content is an answer counts.
Without one it is the last number in bold or code, else the last formula or number.
"""

import re
from collections.abc import Iterator
from itertools import islice

from grpo_pl.rewards.quantities import MAX_ANSWER_CHARS, first_quantity, last_quantity, plain_text, quantity

_MARKS_READ = 50

_SPECIAL_TOKENS = re.compile(r"</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn)>|<[|｜](?!begin_of_box|end_of_box)[^<>\s]{1,40}[|｜]>")
_THOUGHTS_END = re.compile(
    r"</(?:think|thinking|thought|thoughts|reasoning)>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>"
)
_THOUGHTS_BEGIN = re.compile(r"\s*(?:<(?:think|thinking|thought|thoughts|reasoning)>|\[THINK\]|◁think▷)")
_TAG = re.compile(
    r"<(?P<close>/)?(?:final[_ -]?)?(?:answer|final|ans|result)>|\[(?P<close_bracket>/)?answer\]"
    r"|<\|(?:begin|(?P<close_box>end))_of_box\|>",
    re.IGNORECASE,
)
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox) (?P<bare>-?[0-9][0-9.,]*)|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*")
_OPEN_BRACE = re.compile(r"\{[^{}\n]*\Z")
_CUE = re.compile(
    r"\banswer\b(?:[^\n.:=<]{0,80}?(?:\bis\b|\bare\b|\bequals\b|[:=：→]|->)|[*_ \t]*$)[*_\s:]*(?=\S)",
    re.IGNORECASE | re.MULTILINE,
)
_EMPHASISED = re.compile(r"\*\*(?P<bold>[^*\n]{1,200})\*\*|`(?P<code>[^`\n]{1,200})`")
_FORMULA = re.compile(
    r"\$\$(?P<display>[^$]{1,1000})\$\$|\\\[(?P<bracket>(?:(?!\\\]).){1,1000}?)\\\]|\\\((?P<inline>(?:(?!\\\)).){1,1000}?)\\\)"
    r"|(?<!\\)\$(?P<dollar>[^\s$](?:[^$\n]{0,1000}?[^\s$\\])?)\$(?!\d)",
    re.DOTALL,
)
_CLAUSE_END = re.compile(
    r"(?<!\d)[.!?;](?=\s|$)|(?<=\d)[.!?;](?=\s|$)|,\s+(?!and\b|or\b)(?=[a-z]{2})"
    r"|\s(?:because|since|as|for a total|in which|which|where|so|after)\s|\s[–—]\s|\s-\s(?=[a-z])|<"
)
_NEW_CLAUSE = re.compile(r"(?<=[A-Za-z0-9%)*$])[.;!?]\**\s+|,\s+(?:so|then|thus|hence|therefore|which)\b")
_ASIDE = re.compile(r"\s+\([^()]*\)")
_ENUMERATOR = re.compile(r"\d+\s*[.):]?\s*")
_CONCLUSION = re.compile(r"=|^\W*(?:so|therefore|thus|hence|total|in total|altogether|finally)\b", re.IGNORECASE | re.MULTILINE)
_TEXT_ANSWER = re.compile(r"[A-Z][\w'’-]*(?: [\w'’-]+){0,3}|(?i:yes|no|true|false|even|odd|none)")
_DIGIT = re.compile("[0-9½⅓⅔¼¾⅛⅜⅝⅞]")
_COMMANDS = re.compile(r"\\(?:text|mathrm|textbf|mbox|operatorname)\s*\{[^{}]*\}|\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+")
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod|gcd|lcm|min|max|arcsin|arccos|arctan|sinh|cosh|tanh|inf|infinity|det"
_LONG_WORD = re.compile(rf"(?!(?:{_FUNCTIONS})(?![A-Za-z]))(?<![A-Za-z])[A-Za-z]{{3,}}")

Mark = tuple[int, str, str]
"""Where it starts, its kind, and the text that begins with its content."""


def find_answer(response: str) -> str | None:
    """The part of a response that answers; None without one.

    Where the response thinks, only what follows counts; where the thinking does not end, a box, tag or `####`.
    """
    *_, last = [None, *_THOUGHTS_END.finditer(response)]
    text = _SPECIAL_TOKENS.sub("", response[last.end() :] if last else response)
    unfinished = last is None and _THOUGHTS_BEGIN.match(text) is not None
    return _find(text, marked_only=unfinished)


def gold_answer(answer: str) -> str:
    """The answer of a gold text: in its last box, else behind its last `####`, else the whole."""
    boxes = list(_boxes(answer))
    if boxes:
        return boxes[-1][2]
    _, hashes, rest = answer.rpartition("####")
    lines = rest.strip().splitlines()
    if hashes:
        return lines[0] if lines else ""
    formulas = list(_FORMULA.finditer(answer))
    prose = formulas and has_words(_FORMULA.sub("", answer))
    return _inside(formulas[-1]) if prose and quantity(answer) is None else answer


def hashed_answer(text: str) -> str | None:
    """The answer behind the last `####` of a text that has one; a heading (`#### Step 2`) has none."""
    for mark in reversed(list(_HASHES.finditer(text))[-_MARKS_READ:]):
        piece = _clause(text[mark.end() : mark.end() + MAX_ANSWER_CHARS])
        if piece is not None:
            return piece
    return None


def has_words(text: str) -> bool:
    r"""Whether a text has words, outside of LaTeX's commands and `\text{}`, that are no functions."""
    return _LONG_WORD.search(_COMMANDS.sub(" ", text)) is not None


def _find(text: str, *, marked_only: bool) -> str | None:
    marks = sorted(_marks(text, cues=not marked_only), key=lambda mark: mark[0])[-_MARKS_READ:]
    for _, kind, content in reversed(marks):
        piece = _READ[kind](content)
        if piece is not None and len(piece) <= MAX_ANSWER_CHARS:
            return piece
    return None if marked_only else _said_in_words(text, marks) or _unmarked(text[-4 * MAX_ANSWER_CHARS :])


def _marks(text: str, *, cues: bool) -> Iterator[Mark]:
    yield from _boxes(text)
    yield from _tags(text)
    patterns = {"hashes": _HASHES, "cue": _CUE} if cues else {"hashes": _HASHES}
    for kind, pattern in patterns.items():
        for match in pattern.finditer(text):
            if kind == "hashes" and _OPEN_BRACE.search(text, max(0, match.start() - 200), match.start()):
                continue
            yield match.start(), kind, text[match.end() : match.end() + MAX_ANSWER_CHARS]


def _boxes(text: str) -> Iterator[Mark]:
    r"""The contents of `\boxed{...}` whose braces are closed."""
    open_braces: list[int | None] = []  # where the content of a box begins; None for any other brace
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_braces.append(token.end())
        elif token["bare"]:
            yield token.start(), "box", token["bare"]
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                yield start, "box", text[start : min(token.start(), start + MAX_ANSWER_CHARS + 1)]


def _tags(text: str) -> Iterator[Mark]:
    """What stands between two tags, or after one that is not closed."""
    start = None
    for tag in _TAG.finditer(text):
        if not (tag["close"] or tag["close_bracket"] or tag["close_box"]):
            start = tag.end()
        elif start is not None:
            yield start, "tag", text[start : tag.start()]
            start = None
    if start is not None:
        yield start, "tag", text[start:]


def _whole(content: str) -> str:
    return content


def _tagged(content: str) -> str | None:
    """All of it if it is short and no prose, else what it says."""
    content = content.strip()
    if len(content) > MAX_ANSWER_CHARS:
        return _find(content, marked_only=False)
    prose = _DIGIT.search(content) and has_words(content)
    return content if not prose or quantity(content) else _clause(content) or _unmarked(content) or content


def _clause(content: str) -> str | None:
    """The answer with which a text begins; None if it begins with words that go on."""
    formula = _FORMULA.match(content)
    emphasised = _EMPHASISED.match(content)
    line = content.split("\n", 1)[0].strip()
    if re.match(r"\d+[.)]\s+[A-Z]", line):  # a heading with its number
        return None
    end = _CLAUSE_END.search(line)
    clause = (line[: end.start()] if end and end.start() else line).strip()
    for piece in (clause, _ASIDE.sub("", clause)):
        if quantity(piece):
            return piece
    if formula or emphasised:
        return _inside(formula or emphasised)  # type: ignore[arg-type]
    return clause if clause and not has_words(clause) and _DIGIT.search(clause + "0" * ("\\" in clause or len(clause) < 20)) else None


_READ = {"box": _whole, "tag": _tagged, "hashes": _clause, "cue": _clause}


def _said_in_words(text: str, marks: list[Mark]) -> str | None:
    """An answer in words after a mark: a name, `yes`, or the last line of the text."""
    for start, kind, content in reversed(marks):
        line = content.strip().split("\n", 1)[0].strip(" .*_!")
        if _TEXT_ANSWER.fullmatch(line) and (kind == "cue" or not text[start:].strip("# \n").partition("\n")[2]):
            return line
    return None


def _unmarked(text: str) -> str | None:
    """The answer of a text without marks: see the module."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if not has_words(lines[-1]) and len(lines[-1]) <= MAX_ANSWER_CHARS:
        return lines[-1].strip()
    if emphasised := _emphasised_number(text):
        return emphasised
    formulas = [match for match in _FORMULA.finditer(text) if not has_words(_inside(match))]
    if formulas and not _DIGIT.search(text, formulas[-1].end()):
        return _inside(formulas[-1])
    numbered = [line for line in lines if _DIGIT.search(line)]
    return _last_in_line(numbered[-1][-MAX_ANSWER_CHARS:]) if numbered else None


def _emphasised_number(text: str) -> str | None:
    """The last number in bold or code, unless a conclusion follows."""
    found = None
    for match in _EMPHASISED.finditer(text):
        before, after = text[: match.start()].rpartition("\n")[2], text[match.end() : match.end() + 2]
        numbers_a_line = not before.strip(" #-") and _ENUMERATOR.fullmatch(_inside(match) + after.strip()[:1])
        if not (numbers_a_line and after.strip()) and quantity(_inside(match)):
            found = match
    if found is None or _CONCLUSION.search(text[found.end() :].partition("\n")[2]):
        return None
    return _inside(found)


def _last_in_line(line: str) -> str | None:
    """What follows the last `=` of the last clause with a number, else its last number."""
    clauses = [clause for clause in _NEW_CLAUSE.split(plain_text(line)) if clause and _DIGIT.search(clause)]
    if not clauses:
        return None
    clause = _ASIDE.sub("", clauses[-1])
    clause = clause if _DIGIT.search(clause) else clauses[-1]
    if quantity(clause):
        return clause
    first = first_quantity(clause.rpartition("=")[2].strip()) if "=" in clause else None
    return first or last_quantity(clause)


def _inside(match: re.Match[str]) -> str:
    return next(filter(None, islice(match.groups(), 4)), "")
