r"""Finds the answer in a response: a short piece of its text, in linear time. Imports nothing heavy.

Marks are `\boxed{}`, answer tags, `####` and "The answer is"; the last one that holds an answer counts.
Without a mark it is the last number in bold or code, else the last formula or number.
"""

import re
from collections.abc import Callable, Iterator

from grpo_pl.rewards.plain import FOREIGN, plain_text, western
from grpo_pl.rewards.quantities import first_quantity, last_quantity, quantity

MAX_ANSWER_CHARS = 2000
_MAX_LINE_CHARS = 500
_MARKS_READ = 20
_EMPHASES_READ = 200

_SPECIAL_TOKEN = re.compile(
    r"</?s>|<(?:eos|bos|pad|(?:start|end)_of_turn)>|<[|\uff5c](?!(?:begin|end)_of_box)[^<>\s]{1,40}[|\uff5c]>"
)
_THOUGHT = "think|thinking|thought|thoughts|reasoning"
_THOUGHT_END = re.compile(rf"</(?:{_THOUGHT})>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>")
_THOUGHT_BEGIN = re.compile(rf"\s*(?:<(?:{_THOUGHT})>|\[THINK\]|◁think▷)")

_BRACES = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)\s?(?P<bare>-?[0-9][0-9.,]*)|\\.|[{}]", re.DOTALL
)
_TAG = re.compile(
    r"<(?P<close>/)?(?:final[_ -]?)?(?:answer|final|ans|result)>|\[(?P<close_bracket>/)?answer\]"
    r"|<\|(?:begin|(?P<close_box>end))_of_box\|>",
    re.IGNORECASE,
)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*")
_OPEN_BRACE = re.compile(r"\{[^{}\n]*\Z")
_CUE = re.compile(
    r"(?<![<\[/_])\b(?:answer|(?:correct|right|best) (?:option|choice))\b"
    r"(?:[^\n.:=<>]{0,80}?(?:\b(?:is|are|equals)\b|[:=\uff1a→]|->)|[*_ \t]*$)[*_\s:]*(?=\S)"
    r"|(?:答案|答え|正解|정답|답)(?:[^\n.:=<>0-9不]{0,20}?(?:[是为為は은]|[:=→]))[*_\s:]*(?=\S)"
    r"|^[^\w\n]{0,9}(?:final )?result\b[*_ ]*[:=][*_\s:]*(?=\S)"
    r"|\b(?:Ответ|respuesta|Antwort|réponse)\b(?:[^\n.:=<>]{0,30}?(?:[:=]|\b(?:es|ist|est)\b))[*_\s:]*(?=\S)",
    re.IGNORECASE | re.MULTILINE,
)
_JSON = re.compile(
    r"""["'](?:final[_ ]?)?(?:answer|result)["']\s*:\s*(?:"(?P<text>[^"\n]{1,500})\""""
    r"""|'(?P<quoted>[^'\n]{1,500})'|(?P<bare>\[[^\]\n]{1,500}\]|[-\w.+]{1,500}(?=\s*[,}])))""",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"(?P<other>\b(?:or|and|nor|if|whether)\s+)?(?:\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+|(?<![\w'.]))[*(]{0,3}(?P<name>[A-J])[*)]{0,3}\s+is\s+"
    r"(?:the\s+)?(?:\*\*)?(?:correct|right|best)\b"
)
_CHECK = re.compile(
    r"^[^\w\n]{0,9}(?:(?:sanity |double[- ])?check(?:ing)?|verification|verify|proof)\b[*_ ]*:"
    r"|^[^\w\n]{0,9}(?:to|let's|let us|we can) (?:double[- ])?(?:check|verify)\b",
    re.IGNORECASE | re.MULTILINE,
)
_ALIGNED = re.compile(r"\\begin\{(?:align|gather|split|equation|eqnarray)[a-z]*\*?\}(.*)\\end\{", re.DOTALL)
_EMPHASIS = re.compile(r"\*\*(?P<bold>[^*\n]{1,200})\*\*|`(?P<code>[^`\n]{1,200})`")
_CLOSING = {"$$": "$$", r"\[": r"\]", r"\(": r"\)", "$": "$"}
_FORMULA_SIGN = re.compile(r"(?<!\\)\$\$?|\\[()\[\]]")
_MAX_FORMULA_CHARS = 1000

_HEADING = re.compile(r"\d+[.)]\s+[A-Z]")
_CLAUSE_END = re.compile(
    rf"[.!?](?=\s|$)|;(?!\s*[-$\\(]?[0-9])|,\s+(?!and\b|or\b)(?=[a-z]{{2}}|[{FOREIGN}])|\s[\u2013\u2014]\s|\s-\s(?=[a-z]{{2}})"
    r"|<(?=[/|]|[A-Za-z]+\s*/?>)"
    r"|\s(?:because|since|as|for a total|in which|which|where|so|after)\s"
)
_NEXT_CLAUSE = re.compile(
    rf"(?<=[A-Za-z0-9%)*${FOREIGN}])[.;!?]\**\s+|,\s+(?:so|then|thus|hence|therefore|which)\b"
)
_REASON = re.compile(r"(?<=[0-9%)]),?\s+since\s.*")
_ASIDE = re.compile(r"\s+\([^()]*\)")
_EMPTY_LINE = re.compile(r"\s*|```.*|\s*(?:\$\$|\\[()\[\]]|\\(?:begin|end)\{\w+\*?\})\s*")
_BULLET = re.compile(r"\s*(?:[-*•>]\s+|(?:=>|->|[\u2192\u21d2\u2234])\s*)")
_MINUS = re.compile(r"\s*-\s+(?:[0-9.$]+[^$]*|\\[a-z].*|[a-z]\b.*)", re.DOTALL)
_ENUMERATOR = re.compile(r"\d+\s*[.):]?\s*")
_CONCLUSION = re.compile(
    r"=|^\W*(?:so|therefore|thus|hence|total|in total|altogether|finally)\b", re.IGNORECASE | re.MULTILINE
)
_DIGIT = re.compile("[0-9½⅓⅔¼¾⅛⅜⅝⅞]")
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_NAME = re.compile(
    rf"{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?|\d{{1,2}} {_MONTH}(?: \d{{4}})?"
    r"|[A-Z][\w'\u2019-]*(?: [\w'\u2019-]+){0,3}|(?i:yes|no|true|false|even|odd|none)"
)
_COMMAND = re.compile(
    r"\\(?:text|mathrm|textbf|mbox|operatorname)\s*\{[^{}]*\}|\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+"
)
_FUNCTIONS = (
    "and|sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod|gcd|lcm|min|max|arcsin|arccos|arctan|sinh|cosh|tanh|inf|"
    "infinity|det"
)
_LONG_WORD = re.compile(rf"(?!(?:{_FUNCTIONS})(?![A-Za-z]))(?<![A-Za-z])[A-Za-z]{{3,}}|[{FOREIGN}]")

Reader = Callable[[str], str | None]
Mark = tuple[int, int, Reader]
"""Where its content starts, where it ends at the latest, and how it is read."""


def find_answer(response: str) -> str | None:
    """The part of a response that answers; None without one.

    Where the response thinks, only what follows counts; in a thought that does not end, a box, tag or `####`.
    """
    *_, said = _THOUGHT_END.split(western(response))
    text = _SPECIAL_TOKEN.sub("", said)
    return _find(
        text, in_thought=len(said) == len(western(response)) and _THOUGHT_BEGIN.match(text) is not None
    )


def gold_answer(answer: str) -> str:
    """The answer of a gold text: in its last box, else behind its last `####`, else the whole."""
    start, end, _ = max(_boxes(answer), default=(0, 0, str), key=lambda box: box[0])
    if end:
        return answer[start:end]
    _, hashes, rest = answer.rpartition("####")
    if hashes:
        return next(iter(rest.strip().splitlines()), "")
    *_, formula = ["", *(inside for inside, _ in _formulas(answer))]
    return formula if formula and has_words(answer) and quantity(answer) is None else answer


def hashed_answer(text: str) -> str | None:
    """The answer behind the last `####` of a text that has one; a heading (`#### Step 2`) has none."""
    return _last_answer(text, list(_after(_HASHES, text, _hashed)))


def has_words(text: str) -> bool:
    r"""Whether a text has words outside of LaTeX's commands and `\text{}`; functions and `and` are none."""
    return _LONG_WORD.search(_COMMAND.sub(" ", text)) is not None


def _find(text: str, *, in_thought: bool = False) -> str | None:
    marks = [*_boxes(text), *_tags(text), *_after(_HASHES, text, _hashed)]
    marks += [] if in_thought else [*_after(_CUE, text, _clause), *_json(text)]
    marks = sorted(marks, key=lambda mark: mark[0])[-_MARKS_READ:]
    answer = _last_answer(text, marks)
    if answer is not None or in_thought:
        return answer
    return _name(text, marks) or _chosen(text) or _unmarked(text)


def _last_answer(text: str, marks: list[Mark]) -> str | None:
    """The content of the last mark that holds an answer."""
    for start, end, read in reversed(marks[-_MARKS_READ:]):
        answer = read(text[start:end])
        if answer is not None and len(answer) <= MAX_ANSWER_CHARS:
            return answer
    return None


def _boxes(text: str) -> Iterator[Mark]:
    r"""The contents of `\boxed{...}` whose braces are closed."""
    if "box" not in text:
        return
    open_braces: list[int | None] = []  # where the content of a box begins; None for any other brace
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_braces.append(token.end())
        elif token["bare"]:
            yield token.start("bare"), token.end("bare"), str
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                yield start, min(token.start(), start + MAX_ANSWER_CHARS + 1), str


def _tags(text: str) -> Iterator[Mark]:
    """What stands between two tags, or after one that is not closed."""
    start = None
    for tag in _TAG.finditer(text):
        if not (tag["close"] or tag["close_bracket"] or tag["close_box"]):
            start = tag.end()
        elif start is not None:
            yield start, tag.start(), _tagged
            start = None
    if start is not None:
        yield start, len(text), _tagged


def _json(text: str) -> Iterator[Mark]:
    """The values of `"answer"` in JSON."""
    for match in _JSON.finditer(text) if "{" in text else ():
        yield *match.span(match.lastgroup or 0), lambda value: value.replace(r"\\", "\\")


def _after(mark: re.Pattern[str], text: str, read: Reader) -> Iterator[Mark]:
    """What follows a mark that stands in no braces."""
    for match in mark.finditer(text):
        if not _OPEN_BRACE.search(text, max(0, match.start() - 200), match.start()):
            yield match.end(), match.end() + MAX_ANSWER_CHARS, read


def _formulas(text: str) -> Iterator[tuple[str, int]]:
    """What stands between the signs of a formula, and where that ends; `$5 on pens and $13` has none."""
    opening = None
    for sign in _FORMULA_SIGN.finditer(text):
        if opening and sign[0] == _CLOSING[opening[0]] and sign.start() - opening.end() <= _MAX_FORMULA_CHARS:
            inside = text[opening.end() : sign.start()]
            price = sign[0] == "$" and (
                inside != inside.strip() or "\n" in inside or _DIGIT.match(text, sign.end())
            )
            if inside and not price:
                yield inside, sign.end()
                opening = None
                continue
        opening = sign if sign[0] in _CLOSING else None


def _tagged(content: str) -> str | None:
    """All of a short content that is no prose, else the answer in it."""
    content = content.strip()
    if len(content) > MAX_ANSWER_CHARS:
        return _find(content)
    if quantity(content) or not (_DIGIT.search(content) and has_words(content)):
        return content if not quantity(_ASIDE.sub("", content)) else _ASIDE.sub("", content)
    return _find(content) if "\n" in content else _clause(content) or _unmarked(content) or content


def _hashed(content: str) -> str | None:
    """The answer behind `####`; a heading has none."""
    return None if _HEADING.match(content) else _clause(content)


def _clause(content: str) -> str | None:
    """The answer with which a text begins; None if it begins with words that say more."""
    line = content[:_MAX_LINE_CHARS].split("\n", 1)[0].strip()
    end = _CLAUSE_END.search(line, 1)
    clause = line[: end.start()].strip() if end else line
    for answer in (clause, _ASIDE.sub("", clause)):
        if quantity(answer):
            return answer
    if _FORMULA_SIGN.match(content) and (formula := next(_formulas(content), None)):
        return formula[0]
    if emphasis := _EMPHASIS.match(content):
        return _inside(emphasis)
    is_math = len(clause) < 20 or "\\" in clause or _DIGIT.search(clause)
    return clause if clause and is_math and not has_words(clause) else None


def _name(text: str, marks: list[Mark]) -> str | None:
    """An answer in words: after "The answer is", after `####` on the last line, or alone."""
    for start, end, _ in reversed(marks):
        line = text[start:end].strip().split("\n", 1)[0].strip(" .*_!")
        hashed = _HASHES.search(text, max(0, start - 10), start)
        if _NAME.fullmatch(line) and not (hashed and "\n" in text[start:].strip()):
            return line
    alone = text.strip(" \n.*_!")
    return alone if alone.count(" ") < 2 and _NAME.fullmatch(alone) else None


def _chosen(text: str) -> str | None:
    """The last letter that `is correct`, unless it shares that with another."""
    *_, last = [None, *_CHOSEN.finditer(text)]
    return last["name"] if last and not last["other"] else None


def _without_check(text: str) -> str:
    """What stands before a check of the answer."""
    check = _CHECK.search(text)
    return text[: check.start()] if check and _DIGIT.search(text, 0, check.start()) else text


def _without_bullets(text: str) -> list[str]:
    """The lines that hold something; a dash before a number is a minus, unless other lines begin with one."""
    lines = [line for line in text.splitlines() if not _EMPTY_LINE.fullmatch(line)]
    alone = sum(line.lstrip().startswith("- ") for line in lines) == 1
    return [line if alone and _MINUS.fullmatch(line) else line[_bullet_end(line) :] for line in lines]


def _bullet_end(line: str) -> int:
    bullet = _BULLET.match(line)
    return bullet.end() if bullet else 0


def _last_row(formula: str) -> str:
    """The right side of the last row of an aligned formula; any other formula as it is."""
    aligned = _ALIGNED.search(formula)
    return (
        aligned[1].strip().removesuffix(r"\\").rpartition(r"\\")[2].rpartition("=")[2] if aligned else formula
    )


def _unmarked(text: str) -> str | None:
    """The answer of a text without marks: see the module."""
    text = _without_check(text)
    lines = _without_bullets(text)
    if not lines:
        return None
    if not has_words(lines[-1]) and len(lines[-1]) <= MAX_ANSWER_CHARS:
        return _last_row(lines[-1].strip())
    if number := _emphasised_number(text):
        return number
    *_, (formula, end) = [
        ("", 0),
        *((inside, end) for inside, end in _formulas(text) if not has_words(inside)),
    ]
    if formula and not _DIGIT.search(text, end):
        return _last_row(formula)
    numbered = [line for line in lines if _DIGIT.search(line)]
    return _last_in_line(numbered[-1][-_MAX_LINE_CHARS:]) if numbered else None


def _emphasised_number(text: str) -> str | None:
    """The last number in bold or code, unless a line with a conclusion follows."""
    for match in reversed(list(_EMPHASIS.finditer(text))[-_EMPHASES_READ:]):
        before = text[max(0, match.start() - 40) : match.start()].rpartition("\n")[2].strip(" #-")
        after = text[match.end() : match.end() + 1].strip()
        enumerates = after and not before and _ENUMERATOR.fullmatch(_inside(match) + after)
        if not enumerates and quantity(_inside(match)):
            line_end = text.find("\n", match.end())
            concluded = line_end >= 0 and _CONCLUSION.search(text, line_end) is not None
            return None if concluded else _inside(match)
    return None


def _last_in_line(line: str) -> str | None:
    """The number after the last `=` of the last clause with a number, else the last number of the clause."""
    clauses = [clause for clause in _NEXT_CLAUSE.split(plain_text(line)) if clause and _DIGIT.search(clause)]
    if not clauses:
        return None
    clause = _REASON.sub("", _ASIDE.sub("", clauses[-1]))
    clause = clause if _DIGIT.search(clause) else clauses[-1]
    if quantity(clause):
        return clause
    _, equals, right = clause.rpartition("=")
    return (first_quantity(right.strip()) if equals else None) or last_quantity(clause)


def _inside(match: re.Match[str]) -> str:
    """The text in bold or code."""
    return match["bold"] or match["code"]
