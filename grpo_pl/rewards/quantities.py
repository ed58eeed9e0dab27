"""Reads numbers exactly, with their units: answers that need no computer algebra. Imports nothing heavy."""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

from typing_extensions import override

from grpo_pl.rewards.numerals import last_number
from grpo_pl.rewards.plain import FOREIGN, plain_text, western

_MAX_NUMBER_CHARS = 500
_MAX_EXPONENT = 400

# A unit is a known sign, or any word that neither computes nor leaves open: `72 clips a day`, not `72 or so`.
_LETTERS = "m|g|s|h|l|L|°[CFK]?"
_SHORT_UNITS = (
    "km|cm|mm|nm|kg|mg|lb|lbs|oz|ft|in|yd|mi|ml|mL|cl|dl|kL|hr|hrs|sec|min|mins|ms|mph|kph|kmh|rpm|fps|psi|GB|MB|KB|"
    "TB|kB|Hz|kHz|MHz|GHz|kW|kWh|cc|sq|cu|pcs|pc|pts|pt|qt|gal|deg|rad|USD|EUR|GBP|CAD|AUD|INR|JPY|CNY|RMB|kcal|cal|"
    "mol|Pa|kPa|kN|kJ"
)
_GLUE = "a|an|of|on|to|is|as|at|by|he|we|it|if|up|no|so|us|I|my|be|do|go"
_FACTORS = (
    "squared|cubed|factorial|dozens?|lakhs?|crores?|hundreds?|thousands?|millions?|billions?|trillions?|choose|"
    "tenths?|hundredths?|thousandths?|docenas?|mil|millones|Dutzend|Tausend|Millionen"
)
_NO_UNITS = (
    rf"{_FACTORS}|half|halves|thirds?|quarters?|not|never|cannot|or|nor|than|plus|minus|divided|"
    "multiplied|modulo|mod|pi|sqrt|root|log|sin|cos|tan|exp|gcd|lcm|max|twice|thrice|double|triple|maybe|perhaps|possibly|probably|either|between|isn|but|percent|"
    r"percentage|или|не|нет|más|тысяч\w?|миллион\w{0,2}|дюжин\w?"
)
# `或`, `不` and the like leave open or negate, `万` and the like multiply.
_FOREIGN_WORD = (
    rf"(?!\S*(?:[或不無无非没万萬亿億千百十半双雙]|[大小]于|以[上下]|超过)|多)"
    rf"(?=[A-Za-z]*[{FOREIGN}])[A-Za-z{FOREIGN}]+"
)
_WORD = (
    rf"(?!(?i:{_NO_UNITS})\b)(?:{_FOREIGN_WORD}|(?=[A-Za-z]*[a-z]{{3}})[A-Za-z]+|(?=[A-Za-z]{{0,2}}[aeiou])[A-Za-z]{{3}}"
    rf"|(?:{_SHORT_UNITS})|(?:{_GLUE})(?=\s+[A-Za-z]))(?:'s?)?(?![A-Za-z{FOREIGN}])"
)
_POWER = r"(?:\s?\^\s?[23]|[23])?(?![A-Za-z0-9])"
_UNIT = rf"(?:(?:{_LETTERS}|[$€£¥₹¢])(?![A-Za-z])|{_WORD})\.?{_POWER}"
_UNITS = re.compile(
    rf"(?:\s*{_UNIT}(?:\s?[/*]\s?{_UNIT})*|\s?/\s?{_WORD}|-{_WORD}|,?\s+and(?=\s+[A-Za-z]{{3}})){{0,9}}\s*"
)
_CENTS = re.compile(r"\s*(?:dollars?|bucks)?,?\s+and\s+(?P<cents>[0-9]{1,2})\s+cents?\s*")

_CURRENCY = r"(?:(?:US|A|C|NZ)?[$€£¥₹₩₽]|USD|EUR|GBP|Rs\.?|INR)?\s*"
_GROUPS = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}|[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/])"
_DECIMAL = rf"(?:(?:{_GROUPS}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_SCALES = {"": 0, "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SHORT_SCALES = {"": 0, "k": 3, "K": 3, "M": 6, "B": 9}
_NUMBER = re.compile(
    rf"(?P<sign>(?:(?<![\w)\]}}])[-+])?)\s*{_CURRENCY}(?P<inner>-?)\s*"
    rf"(?:(?P<whole>[0-9]+)(?:\s+|\s*(?:and|&)\s*)(?P<over>[0-9]+)\s*/\s*(?P<under>[0-9]+)"  # 2 1/2
    rf"|(?P<digits>[0-9]*)\.(?P<fixed>[0-9]*)\\overline\s*\{{(?P<period>[0-9]+)\}}"
    rf"|(?:(?P<first>{_DECIMAL})\s*[*xX]\s*)?10\s*\^\s*(?P<power>[-+]?[0-9]{{1,4}})"  # 3.5 x 10^3
    rf"|(?P<number>{_DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]{{1,4}})|\s*/\s*(?P<divisor>-?{_DECIMAL})"
    rf"|(?P<half>\s+and\s+(?:a|one)\s+half))?)(?![0-9])"
    rf"(?:\s+(?P<scale>hundred|thousand|million|billion|trillion)\b|(?P<short>[kKMB])\b)?"
    rf"(?P<percent>\s*(?:%|percent\b|percentage\b|per\s?cent\b|pct\b))?"
)
_COLONS = r"(?P<numbers>[0-9]{1,9}(?:\s?:\s?[0-9]{1,9}){1,2})\s*(?P<half_day>[aApP]\.?\s?[mM]\b\.?)?"
_RATIO = re.compile(rf"{_COLONS}\s*")
_HOUR = re.compile(r"(?P<hour>[0-9]{1,2})\s*(?P<half_day>[aApP]\.?\s?[mM]\b\.?)\s*")
_BASED = re.compile(r"\(?([0-9A-Fa-f]{1,99})\)?_\{?\s*([0-9]{1,2})\s*\}?")

# What may stand before a number.
_LEFT_SIDE = re.compile(
    r"(?![^A-Za-z]*[0-9],\s)\s*(?:(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?|'|\([\w,\s]+\))?"  # x, S_n, f(3), \theta
    r"|(?:[A-Za-z']{2,}(?![A-Za-z'])|[0-9.,+\-*/()^$€£%\s:=]|(?<=[0-9 ])x(?= ?[0-9]))*)\s*"  # Total: 48 + 24
)
_LABELS = "step|part|case|problem|question|note|option|example|chapter|day|week|year"
_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_WORDS = re.compile(rf"(?:(?!(?i:{_LABELS}|{_MONTHS})\b)(?i:{_WORD}|(?:{_GLUE})(?:'s)?)[\s,:]+)+")
_APPROXIMATELY = re.compile(r"(?i:approximately|approx\.?|about|around|roughly|exactly|just|only|=|~)\s*")
_NEGATIVE = re.compile(r"(?i:negative|minus)\s+(?=[$€£]?[0-9])")

_APPLIED = re.compile(
    r"(?:\\(?:a(?:rc)?)?(?:sin|cos|tan|cot|sec|csc|log|ln|angle|overline|triangle|max|min|gcd|det|dim|Pr|binom|sum)(?![a-z])"
    r"|m\s*\\angle|[A-Za-z](?=\s*\()|\|(?=[A-Z]{2}\|))(?:\([^()=<>]*\)|[^=<>+()\-])*"
)
_ONE_NAME = re.compile(r"\s*(?:[A-Za-z]|\\[a-z]+)\s*")
_COMPUTED = re.compile(
    r"\\(?:sqrt|[dt]?frac|binom|left|right|[lr]floor|[lr]ceil|[lr]vert)(?![a-z])|(?<=[0-9)])!"
)
_TERMS = re.compile(r"(?!.*[A-Za-z]{4})[A-Za-z0-9^_+\-*/(){} ]+")
_UNKNOWN = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?")

# Numbers in a longer text.
_TOKEN = re.compile(rf"{_COLONS}|(?<![\w.]){_NUMBER.pattern}(?:\s?(?:π|\\?pi(?![A-Za-z]))|[^\W\d_]{{0,20}})")
_ORDINAL = re.compile(r"[0-9](?:st|nd|rd|th)\Z")
_AFTER_LABEL = re.compile(rf"\b(?i:{_LABELS})\s+\Z")
_AFTER_NEGATIVE = re.compile(r"(?<![0-9)] )\b(?i:negative|minus) \Z")
_AFTER_ANOTHER = re.compile(  # `72 or`, `70, 71,`, `not`
    r"[0-9][^\s0-9]{0,3}\s*[,;(]?\s*\b(?:or|and|maybe|perhaps|possibly)\s+(?:[a-z]+\s)?[$€£(]*\Z"
    r"|[0-9],\s+[0-9.]+,\s+\Z|\b(?:than|twice|double|triple|half|half of)\s+(?:[a-z]+\s)?[$€£(]*\Z"
    r"|(?:\b(?:not|never|cannot|не)|n't|thing but|不是|[大小]于|超过|не)\s+(?:be\s+|equal\s+to\s+)?"
    r"(?:[a-z]+\s)?[$€£(]*\Z"
)
_IN_FORMULA = re.compile(  # `x + 5`, `2^4`, `(2, 5)`, `3 times 5`
    r"(?:\^\s*[{(]?|√\s*\(?|\\sqrt\s*\{|[≠≤≥]\s*|\\neq?\s*|(?<![A-Za-z\"'/])[<>]\s*|\b[A-Za-z]\s?[<>]\s*|\b[A-Za-z]\s*[-+]|[\w)]\s*\*{1,2}\s*|[\w)]\s*[+/]\s*"
    r"|[0-9]\s+(?:plus|minus|times|divided by|over|choose)\s+|[(\[{⟨]\s*[^\s()\[\]{}]{1,12}\s*[,;|]\s*)\Z"
)
_AFTER_TERM = re.compile(r"(?:\b[0-9.]*[A-Za-z]|[0-9)])\s*\Z")
_LARGER_UNIT = re.compile(
    r"[0-9]\s*(?i:hours?|hrs?|h|minutes?|mins?|days?|weeks?|years?|feet|foot|ft|pounds?|lbs?),?\s+(?:and\s+)?\Z"
)
_SMALLER_UNIT = re.compile(
    r"\s*-?(?i:minutes?|mins?|seconds?|secs?|inch(?:es)?|in|ounces?|oz|hours?|days?|weeks?|months?)\b"
)
CHANGED = re.compile(rf"(?<=[0-9])\s*-?(?:(?i:{_FACTORS})\b|[万萬亿億千百半多]|以[上下])")
_GOES_ON = re.compile(r"\s*(?:[-+*/^(]|\\|(?:or|and)\s+[$€£]?[0-9]|(?!a\b)[a-z]\b)")


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
        """The spelling of `last_number`, whatever the per cent sign; None for a decimal without end."""
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
    half_day: str = ""
    """`am`, `pm` or nothing."""
    clock: bool = False
    """Whether it can be read as a time: two digits behind each colon, and each below 60."""

    @override
    def __str__(self) -> str:
        """The spelling: a ratio in its smallest numbers."""
        hour, *rest = self.numbers
        time = ":".join([str(hour), *(f"{number:02}" for number in rest)])
        return f"{time} {self.half_day}".strip() if self.clock else ":".join(map(str, self.reduced()))

    def reduced(self) -> tuple[int, ...]:
        """The smallest whole numbers in this ratio."""
        divisor = gcd(*self.numbers) or 1
        return tuple(number // divisor for number in self.numbers)


def quantity(text: str) -> Quantity | Ratio | None:
    """The number that a short text is: bare, with a unit, or after `x =`, `2 + 3 =`, `Total:`; else None."""
    if len(text) > _MAX_NUMBER_CHARS:
        return None
    plain = plain_text(text)
    left, equals, right = plain.rpartition("=")
    if equals and left.strip() and not _LEFT_SIDE.fullmatch(left):
        return None
    right = right.strip()
    for _ in range(2):
        if approximately := _APPROXIMATELY.match(right):
            right = right[approximately.end() :]
        right = _NEGATIVE.sub("-", right, count=1) if _NEGATIVE.match(right) else right
        if found := _number(right) or _ratio(right):
            return found
        if not (words := _WORDS.match(right)):
            return None
        right = right[words.end() :]
    return None


def last_quantity(text: str) -> str | None:
    """The last number in a plain text, with the letters that stand at it; None if it is one of several.

    Ordinals (`3rd`), labels (`Step 2`) and numbers in words (`A4`) are passed over.
    """
    last = None
    for match in _TOKEN.finditer(text):
        if not _ORDINAL.search(match[0]) and not _before(match, _AFTER_LABEL):
            last = match
    if last is None or _before(last, _AFTER_ANOTHER) or _is_a_part(last):
        return None
    number = last[0].strip()
    return f"-{number}" if _before(last, _AFTER_NEGATIVE) else number


def _is_a_part(match: re.Match[str]) -> bool:
    """Whether a number is a part of a formula, of a point or of `6 feet 2 inches`, or changed (`squared`)."""
    text, end = match.string, match.end()
    return (
        _before(match, _IN_FORMULA)
        or (match[0][:1] in "-+" and match[0][1:2] == " " and _before(match, _AFTER_TERM))
        or (_before(match, _LARGER_UNIT) and _SMALLER_UNIT.match(text, end) is not None)
        or CHANGED.match(text, end) is not None
    )


def _before(match: re.Match[str], pattern: re.Pattern[str]) -> bool:
    """Whether what stands just before a match ends like the pattern."""
    return pattern.search(match.string, max(0, match.start() - 40), match.start()) is not None


def first_quantity(text: str) -> str | None:
    """The number with which a plain text begins, unless a formula or another number follows (`72 or 73`)."""
    match = _TOKEN.match(text)
    return match[0].strip() if match and not _GOES_ON.match(text, match.end()) else None


def same_in_base(gold: str, answer: str) -> bool | None:
    """Whether `1010_2` is what the answer says, with its base or without; None if neither has a base."""
    first, second = plain_text(gold), plain_text(answer)
    gold_based, based = _BASED.fullmatch(first), _BASED.fullmatch(second)
    if gold_based and based:
        return gold_based[1] == based[1] and int(gold_based[2]) == int(based[2])
    if gold_based:
        return second == gold_based[1]
    return None if based is None else int(based[2]) == 10 and first == based[1]


def is_equation(text: str) -> bool:
    """Whether a text states more than the value of one name: `2x = 72`, and not `x = 36`."""
    left, equals, _ = plain_text(text).partition("=")
    return bool(equals) and left[-1:] not in "<>!" and _LEFT_SIDE.fullmatch(left) is None


def sought_value(text: str) -> str:
    r"""What stands behind the `=` of `a + b = 7` or `\cos\theta = 1/2`; any other text as it is."""
    left, equals, right = western(text).partition("=")
    left = plain_text(left).replace("&", "").strip()
    if equals and _ONE_NAME.fullmatch(right):
        return left
    return right if right.strip() and _is_sought(left) else text


def _is_sought(left: str) -> bool:
    r"""Whether a left side is computed, or no single unknown: `2 + 3`, `\cos\theta`, `a + b`; not `2x`."""
    computed = _COMPUTED.sub("", left)
    if not re.search(r"[A-Za-z\\<>≠!,;]", computed) or _APPLIED.fullmatch(left):
        return True
    return len(set(_UNKNOWN.findall(computed))) > 1 and _TERMS.fullmatch(computed) is not None


def same(gold: Quantity | Ratio, answer: Quantity | Ratio) -> bool:
    """Whether two numbers are equal: `50%` is 1/2 and, beside a bare one, 50; `3:2` is 3/2 and `6:4`."""
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        return _same_times(gold, answer) if gold.clock else gold.reduced() == answer.reduced()
    first, second = _as_value(gold), _as_value(answer)
    if first is None or second is None:
        return False
    values, others = {first.value}, {second.value}
    if first.percent != second.percent:
        (values if first.percent else others).add((first if first.percent else second).value / 100)
    return bool(values & others) or any(_rounds(value, other) for value in values for other in others)


def _rounds(gold: Fraction, answer: Fraction) -> bool:
    """Whether the answer is a gold number without an end (1/3), rounded to six places or more."""
    endless = 10**_MAX_EXPONENT % gold.denominator != 0
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
    """Whether two times are the same; where one does not say which half of the day, either is right."""
    if gold.numbers[1:] != answer.numbers[1:]:
        return False
    if bool(gold.half_day) == bool(answer.half_day) or not {gold.numbers[0], answer.numbers[0]} <= set(
        range(1, 13)
    ):
        return _hour(gold) == _hour(answer)
    return gold.numbers[0] == answer.numbers[0]


def _hour(time: Ratio) -> int:
    """The hour of the day, from 0 to 23, of a time that says its half."""
    return time.numbers[0] % 12 + 12 * (time.half_day == "pm") if time.half_day else time.numbers[0]


def _number(text: str) -> Quantity | None:
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = _value(match)
    cents = _CENTS.fullmatch(text, match.end())
    if value is None or not (cents or _UNITS.fullmatch(text, match.end())):
        return None
    value += Fraction(int(cents["cents"]), 100) if cents else 0
    scale = _SCALES[match["scale"] or ""] + _SHORT_SCALES[match["short"] or ""]
    sign = -1 if "-" in (match["sign"], match["inner"]) else 1
    return Quantity(sign * value * 10**scale, percent=match["percent"] is not None)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number without sign, scale and unit; None for a division by zero or too high a power."""
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
    return value * Fraction(10) ** exponent if abs(exponent) <= _MAX_EXPONENT else None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").rstrip("."))


def _ratio(text: str) -> Ratio | None:
    match = _RATIO.fullmatch(text)
    if match is None:
        hour = _HOUR.fullmatch(text)
        return Ratio((int(hour["hour"]), 0), _half_day(hour["half_day"]), clock=True) if hour else None
    parts = [part.strip() for part in match["numbers"].split(":")]
    clock = len(parts[0]) <= 2 and all(len(part) == 2 and part < "60" for part in parts[1:])
    return Ratio(tuple(map(int, parts)), _half_day(match["half_day"] or ""), clock=clock)


def _half_day(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha())
