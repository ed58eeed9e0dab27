"""Reads an answer that is one number: exact, with its unit, in plain text or in LaTeX. Imports nothing heavy."""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

from typing_extensions import override

from grpo_pl.rewards.numerals import ascii_numbers, last_number

MAX_ANSWER_CHARS = 2000
MAX_EXPONENT = 400


@dataclass(frozen=True)
class Quantity:
    """A number without its unit."""

    value: Fraction
    percent: bool = False

    @override
    def __str__(self) -> str:
        """The spelling, the same for equal numbers: `5/2` for `2.5` and for `2 1/2`, `1/2` for `50%`."""
        return str(self.value / 100 if self.percent else self.value)

    def decimal(self) -> str | None:
        """The spelling of `last_number`, without regard to a per cent sign; None for a decimal without end."""
        places = self.value.denominator.bit_length()  # 2^a 5^b divides 10^max(a, b)
        scaled = self.value * 10**places
        if scaled.denominator != 1:
            return None
        digits = str(abs(scaled.numerator)).zfill(places + 1)
        return last_number(f"{'-' * (scaled < 0)}{digits[:-places]}.{digits[-places:]}")


@dataclass(frozen=True)
class Ratio:
    """Two numbers with a colon: a ratio, or hours and minutes (and seconds)."""

    numbers: tuple[int, ...]
    half: str = ""
    """`am`, `pm` or nothing."""
    clock: bool = False
    """Whether it can be read as a time: two digits behind each colon, and each below 60."""

    @override
    def __str__(self) -> str:
        """The spelling: a ratio in its smallest numbers."""
        hour, *rest = self.numbers
        time = ":".join([str(hour), *(f"{number:02}" for number in rest)])
        return f"{time} {self.half}".strip() if self.clock else ":".join(map(str, self.reduced()))

    def reduced(self) -> tuple[int, ...]:
        """The smallest whole numbers in this ratio."""
        divisor = gcd(*self.numbers) or 1
        return tuple(number // divisor for number in self.numbers)


_LETTER_UNITS = "m|g|s|h|l|L|°[CFK]?"
_SHORT_UNITS = (
    "km|cm|mm|nm|kg|mg|lb|lbs|oz|ft|in|yd|mi|ml|mL|cl|dl|kL|hr|hrs|sec|min|mins|ms|mph|kph|kmh|rpm|fps|psi|"
    "GB|MB|KB|TB|kB|Hz|kHz|MHz|GHz|kW|kWh|cc|sq|cu|pcs|pc|pts|pt|qt|gal|deg|rad|USD|EUR|GBP|CAD|AUD|INR|JPY|CNY|RMB|"
    "kcal|cal|mol|Pa|kPa|kN|kJ"
)
_GLUE = "a|an|of|on|to|is|as|at|by|he|we|it|if|up|no|so|us|I|my|be|do|go"  # never the last word
_NEVER = (
    "not|or|nor|than|half|halves|third|thirds|quarter|quarters|squared|cubed|factorial|plus|minus|divided|"
    "multiplied|modulo|mod|pi|sqrt|root|log|sin|cos|tan|exp|gcd|lcm|max|hundred|thousand|million|billion|"
    "trillion|maybe|perhaps|possibly|probably|either|between|isn|but|percent|percentage"
)
_WORD = (
    rf"(?!(?i:{_NEVER})\b)(?:[A-Za-z]*[a-z]{{3}}[A-Za-z]*|(?=[A-Za-z]{{0,2}}[aeiou])[A-Za-z]{{3}}"
    rf"|(?:{_SHORT_UNITS})|(?:{_GLUE})(?=\s+[A-Za-z]))(?:['’]s?)?(?![A-Za-z])"
)
_POWER = r"(?:\s?\^\s?[23]|[23])?(?![A-Za-z0-9])"
_UNIT = rf"(?:(?:{_LETTER_UNITS}|[$€£¥₹¢])(?![A-Za-z])|{_WORD})\.?{_POWER}"
_UNITS = rf"(?:\s*{_UNIT}(?:\s?[/*]\s?{_UNIT})*|\s?/\s?{_WORD}|-{_WORD}|,?\s+and(?=\s+[A-Za-z]{{3}})){{0,9}}"
_CURRENCY = r"(?:(?:US|A|C|NZ)?[$€£¥₹₩₽]|USD|EUR|GBP|Rs\.?|INR)?\s*"
_GROUPS = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}|[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/])"
_DECIMAL = rf"(?:(?:{_GROUPS}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "K": 3, "M": 6, "B": 9}
_RATIO_TEXT = r"(?P<numbers>[0-9]{1,9}(?:\s?:\s?[0-9]{1,9}){1,2})\s*(?P<day>[aApP]\.?\s?[mM]\b\.?)?"
_NUMBER = re.compile(
    rf"(?P<sign>(?:(?<![\w)\]}}])[-+])?)\s*{_CURRENCY}(?P<inner>-?)\s*"
    rf"(?:(?P<whole>[0-9]+)(?:\s+|\s*(?:and|&)\s*)(?P<over>[0-9]+)\s*/\s*(?P<under>[0-9]+)"
    rf"|(?P<digits>[0-9]*)\.(?P<fixed>[0-9]*)\\overline\s*\{{(?P<period>[0-9]+)\}}"
    rf"|(?:(?P<first>{_DECIMAL})\s*[*xX]\s*)?10\s*\^\s*(?P<power>[-+]?[0-9]{{1,4}})"
    rf"|(?P<number>{_DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]{{1,4}})|\s*/\s*(?P<divisor>-?{_DECIMAL})"
    rf"|(?P<half>\s+and\s+(?:a|one)\s+half))?)(?![0-9])"
    rf"(?:\s+(?P<scale>hundred|thousand|million|billion|trillion)\b|(?P<short>[kKMB])\b)?"
    rf"(?P<percent>\s*(?:%|percent\b|percentage\b|per\s?cent\b|pct\b))?"
)
_TOKEN = re.compile(rf"{_RATIO_TEXT}|(?<![\w.]){_NUMBER.pattern}[A-Za-z]{{0,20}}")
_UNITS_TO_THE_END = re.compile(rf"{_UNITS}\s*")
_CENTS = re.compile(r"\s*(?:dollars?|bucks)?,?\s+and\s+(?P<cents>[0-9]{1,2})\s+cents?\s*")
_RATIO = re.compile(rf"{_RATIO_TEXT}(?:\s+o'clock)?\s*")
_HOUR = re.compile(r"(?P<hour>[0-9]{1,2})\s*(?P<half>[aApP]\.?\s?[mM]\b\.?)\s*")
_LEFT_SIDE = re.compile(
    r"\s*(?:(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?|'|\([\w,\s]+\))?"  # x, S_n, f(3), \theta
    r"|(?:[A-Za-z'’]{2,}(?![A-Za-z'’])|[0-9.,+\-*/()^$€£%\s:=]|(?<=[0-9 ])x(?= ?[0-9]))*)\s*"  # Total: 48 + 24
)
_WORDS_BEFORE = re.compile(
    rf"(?:(?!(?i:step|part|case|problem|question|note|option|example|chapter)\b)(?i:{_WORD}|{_GLUE})[\s,:]+)+"
)
_ORDINAL = re.compile(r"[0-9](?:st|nd|rd|th)$")
_HEDGED = re.compile(
    r"[0-9][^\s0-9]{0,3}\s*[,;(]?\s*\b(?:or|and|maybe|perhaps|possibly)\s+(?:[a-z]+\s)?[$€£(]*$"
    r"|[0-9],\s+[0-9.]+,\s+$|\bnot\s+(?:[a-z]+\s)?[$€£(]*$"
)
_GOES_ON = re.compile(r"\s*(?:[-+*/^(]|\\|(?:or|and)\s+[$€£]?[0-9]|(?!a\b)[a-z]\b)")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad|~|\s+|\\displaystyle|\\left|\\right|\\limits|\\phantom\{[^{}]*\}")
_TEXTS = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf)|mbox|emph|operatorname|bm|boldsymbol|underline)\s*\{([^{}]*)\}")
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(-?[0-9.,]+)\s*\}|([0-9]))\s*(?:\{\s*(-?[0-9.,]+)\s*\}|([0-9]))"
)
_EMPHASIS = re.compile(r"(?<![\w)])(?:\*\*|__)|(?:\*\*|__)(?![\w(])|`")
_REPLACED = {
    r"\%": "%", r"^\circ": "°", r"^{\circ}": "°", r"\circ": "°", r"\degree": "°", "º": "°", r"\times": "*",
    r"\cdot": "*", "×": "*", "·": "*", "⋅": "*", "⁄": "/", r"\approx": "=", "≈": "=", r"\euro": "€",
    r"\pounds": "£", "\\(": "", "\\)": "", "\\[": "", "\\]": "", "−": "-", "﹣": "-", "－": "-", "％": "%",
    "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅖": " 2/5", "⅗": " 3/5",
    "⅘": " 4/5", "⅙": " 1/6", "⅚": " 5/6", "⅛": " 1/8", "⅜": " 3/8", "⅝": " 5/8", "⅞": " 7/8",
}  # fmt: skip
_REPLACE = re.compile("|".join(map(re.escape, sorted(_REPLACED, key=len, reverse=True))))
_PAIRS = {("{", "}"), ("(", ")")}
_BRACKETS = re.compile(r"[(){},]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile("[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_APPROXIMATELY = re.compile(r"(?:approximately|approx\.?|about|around|roughly|exactly|just|only|=|~)\s*", re.IGNORECASE)


def quantity(text: str) -> Quantity | Ratio | None:
    """The number that a short text is: bare, with a unit, or after `x =`, `48 + 24 =`, `Total:`; else None."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    plain = plain_text(text)
    left, equals, right = plain.rpartition("=")
    if equals and left.strip() and not _LEFT_SIDE.fullmatch(left):
        return None
    right = right.strip()
    for _ in range(2):
        if approximately := _APPROXIMATELY.match(right):
            right = right[approximately.end() :]
        if found := _number(right) or _ratio(right):
            return found
        if not (words := _WORDS_BEFORE.match(right)):
            return None
        right = right[words.end() :]
    return None


def last_quantity(text: str) -> str | None:
    """The last number in a plain text, with the letters that stand at it; None without one, or if it is one of several.

    Ordinals (`3rd`) and numbers in words (`A4`) are passed over.
    """
    last = None
    for match in _TOKEN.finditer(text):
        if not _ORDINAL.search(match[0]):
            last = match
    if last is None or _HEDGED.search(text[max(0, last.start() - 40) : last.start()]):
        return None
    return last[0].strip()


def first_quantity(text: str) -> str | None:
    """The number with which a plain text begins, unless it goes on as a formula or names another (`72 or 73`)."""
    match = _TOKEN.match(text)
    return match[0].strip() if match and not _GOES_ON.match(text, match.end()) else None


def is_equation(text: str) -> bool:
    """Whether a text states more than the value of one name: `2x = 72`, and not `x = 36`."""
    left, equals, _ = plain_text(text).partition("=")
    return bool(equals) and left[-1:] not in "<>!" and _LEFT_SIDE.fullmatch(left) is None


def plain_text(text: str) -> str:
    """A short text without LaTeX's and Markdown's dress, with `*`, `/`, `^`, `%`, `°` for all their spellings."""
    text = _REPLACE.sub(lambda match: _REPLACED[match[0]], ascii_numbers(_thousands(text)))
    text = _RAISED.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    text = _SPACES.sub(" ", text)
    text = _TEXTS.sub(r" \1", _TEXTS.sub(r" \1", text))
    text = _FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", text)
    text = re.sub(r"\^\s*\{\s*([-+]?[0-9]+)\s*\}", r"^\1", _EMPHASIS.sub("", text))
    text = text.strip(" \n\t*_").rstrip(" .,;:*")
    if text.startswith("$") and text.endswith("$"):
        text = text.strip("$").strip().rstrip(" .,;:")
    while (text[:1], text[-1:]) in _PAIRS and not _BRACKETS.search(text, 1, len(text) - 1):
        text = text[1:-1].strip()
    return "-" + text[1:].lstrip() if text[:1] in "–—" and text[1:2].strip() else text


def same(gold: Quantity | Ratio, answer: Quantity | Ratio) -> bool:
    """Whether two numbers are equal: `50%` is 1/2 and, where the other is bare, 50; `3:2` is 3/2 and `6:4`."""
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        return _same_times(gold, answer) if gold.clock else gold.reduced() == answer.reduced()
    first, second = _as_value(gold), _as_value(answer)
    if first is None or second is None:
        return False
    values = {first.value / 100, first.value} if first.percent and not second.percent else {first.value}
    others = {second.value / 100, second.value} if second.percent and not first.percent else {second.value}
    return bool(values & others) or any(_rounds(value, other) for value in values for other in others)


def _rounds(gold: Fraction, answer: Fraction) -> bool:
    """Whether the answer is a gold number without an end (1/3), rounded to six places or more."""
    endless = 10**MAX_EXPONENT % gold.denominator != 0
    return endless and abs(gold - answer) * 2 * 10**6 <= 1 and answer.denominator >= 10**3


def _as_value(number: Quantity | Ratio) -> Quantity | None:
    """A ratio of two as a fraction, a full hour as its number."""
    if isinstance(number, Quantity):
        return number
    hour, *rest = number.numbers
    if number.clock and not any(rest):
        return Quantity(Fraction(hour))
    return None if number.clock or len(rest) != 1 or not rest[0] else Quantity(Fraction(hour, rest[0]))


def _same_times(gold: Ratio, answer: Ratio) -> bool:
    """Whether two times are the same; where one of them does not say which half of the day, either is."""
    hours = [number.numbers[0] % 12 + 12 * (number.half == "pm") for number in (gold, answer)]
    if not gold.half and not answer.half:
        return gold.numbers == answer.numbers
    if not gold.half or not answer.half:
        bare, said = (gold, answer) if answer.half else (answer, gold)
        hours = [bare.numbers[0], hours[said is answer] if bare.numbers[0] % 24 not in range(1, 13) else said.numbers[0]]
    return hours[0] == hours[1] and gold.numbers[1:] == answer.numbers[1:]


def _number(text: str) -> Quantity | None:
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = _value(match)
    cents = _CENTS.fullmatch(text, match.end())
    if value is None or not (cents or _UNITS_TO_THE_END.fullmatch(text, match.end())):
        return None
    value += Fraction(int(cents["cents"]), 100) if cents else 0
    scale = _SCALES.get(match["scale"] or match["short"] or "", 0)
    sign = -1 if "-" in (match["sign"], match["inner"]) else 1
    return Quantity(sign * value * 10**scale, percent=match["percent"] is not None)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number without its sign, scale and unit; None for a division by zero or a power that is too high."""
    if match["under"]:
        under = int(match["under"])
        return int(match["whole"]) + Fraction(int(match["over"]), under) if under else None
    if match["period"]:
        digits, fixed, period = match["digits"] or "0", match["fixed"], match["period"]
        repeated = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
        return Fraction(f"{digits}.{fixed or 0}") + repeated
    exponent = int(match["power"] or match["exponent"] or 0)
    value = _decimal(match["number"] or match["first"] or "1")
    if match["divisor"]:
        divisor = _decimal(match["divisor"])
        return value / divisor if divisor else None
    if match["half"]:
        value += Fraction(1, 2)
    return value * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").rstrip("."))


def _ratio(text: str) -> Ratio | None:
    match = _RATIO.fullmatch(text)
    if match is None:
        hour = _HOUR.fullmatch(text)
        return Ratio((int(hour["hour"]), 0), _half(hour["half"]), clock=True) if hour else None
    parts = [part.strip() for part in match["numbers"].split(":")]
    clock = len(parts[0]) <= 2 and all(len(part) == 2 and part < "60" for part in parts[1:])
    return Ratio(tuple(map(int, parts)), _half(match["day"] or ""), clock=clock)


def _half(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha())


_THIN = re.compile("(?<=[0-9])[\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}\N{NO-BREAK SPACE}'’_](?=[0-9]{3}(?![0-9]))")


def _thousands(text: str) -> str:
    return _THIN.sub(",", text)
