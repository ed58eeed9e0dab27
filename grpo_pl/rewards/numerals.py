"""Decimal numbers in texts. Imports nothing heavy: worker processes read answers with it."""

import re

# A hyphen after a letter, digit or bracket joins two terms or words; it is not the sign of the number.
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]}])-[$€£]?|[$€£]-)?"
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.(?P<decimals>[0-9]+))?"
    r"|(?<![\w.])\.(?P<bare_decimals>[0-9]+))"
)
_LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[,!])(?=[0-9]{3}(?![0-9]))")
_UNIT_POWER = re.compile(
    r"(?<![A-Za-z])(?:[cdkm]?m|ft|in|yd|mi|units?|feet|inches|(?:centi|kilo)?meters?|miles|yards)\s?\}?\s?\^\s?\{?[23]\}?"
)
_SCALED = re.compile(r"(?:[kKMB](?![A-Za-z])|\s?[\u00bc-\u00be\u2150-\u215e])")
_JOINED = re.compile(
    r"(?:[0-9)}]\s*[/:\u2044]\s*|\^\s*\{?\s*|[0-9][eE][-+]?|\}\s*\{\s*|\\(?:[dt]?frac|sqrt)\s*\{?\s*)\Z"
)


def ascii_numbers(text: str) -> str:
    r"""The text without `\$`, a hyphen for a Unicode minus, `1,234` for `1{,}234`, `1\,234` and `1,\!234`."""
    return _LATEX_THOUSANDS.sub(",", text.replace("\N{MINUS SIGN}", "-").replace(r"\$", ""))


def last_number(text: str) -> str | None:
    """The last decimal number in a text, spelled so that equal numbers are equal strings (`-1234.5`, `0`).

    Numbers stay strings, so that a million digits are as exact and nearly as fast as one.
    """
    last = _last(ascii_numbers(text))
    return None if last is None else _spell(last)


def lone_number(text: str) -> str | None:
    """`last_number`, but None where that is a part of a fraction, power, time, of `70k` or of `2½`."""
    last = _last(_UNIT_POWER.sub("", ascii_numbers(text)))
    if last is None or _SCALED.match(last.string, last.end()):
        return None
    if _JOINED.search(last.string, max(0, last.start() - 40), last.start()):
        return None
    return _spell(last)


def _last(text: str) -> re.Match[str] | None:
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    return last


def _spell(match: re.Match[str]) -> str:
    whole = (match["whole"] or "").replace(",", "").lstrip("0") or "0"
    decimals = (match["decimals"] or match["bare_decimals"] or "").rstrip("0")
    number = f"{whole}.{decimals}" if decimals else whole
    return f"-{number}" if match["minus"] and number != "0" else number
