"""Undresses a short text of LaTeX and Markdown. Imports nothing heavy."""

import re
import unicodedata

from grpo_pl.rewards.numerals import ascii_numbers

_VULGAR_FRACTIONS = "\u00bc\u00bd\u00be" + "".join(map(chr, range(0x2150, 0x215F)))
_SPELLINGS = {
    r"\%": "%",
    "\N{FULLWIDTH PERCENT SIGN}": "%",
    r"^\circ": "°",
    r"^{\circ}": "°",
    r"\circ": "°",
    r"\degree": "°",
    "\N{MASCULINE ORDINAL INDICATOR}": "°",
    r"\times": "*",
    r"\cdot": "*",
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{MIDDLE DOT}": "*",
    "\N{DOT OPERATOR}": "*",
    "\N{FRACTION SLASH}": "/",
    "\N{DIVISION SIGN}": "/",
    r"\div": "/",
    "&=": "=",
    r"\approx": "=",
    "\N{ALMOST EQUAL TO}": "=",
    r"\euro": "€",
    r"\pounds": "£",
    "\N{SMALL HYPHEN-MINUS}": "-",
    "\N{FULLWIDTH HYPHEN-MINUS}": "-",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    **dict.fromkeys([r"\(", r"\)", r"\[", r"\]"], ""),
    **{sign: " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/") for sign in _VULGAR_FRACTIONS},
}
_SPELLING = re.compile("|".join(map(re.escape, sorted(_SPELLINGS, key=len, reverse=True))))
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_AS_DIGITS = str.maketrans(_SUPERSCRIPTS, "0123456789-")
_THOUSANDS = re.compile(r"(?<=[0-9])[\u2009\u202f\u00a0'\u2019_](?=[0-9]{3}(?![0-9]))")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad|~|\s+|\\(?:displaystyle|left|right|limits)|\\phantom\{[^{}]*\}")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf)|mbox|emph|operatorname|bm|boldsymbol|underline)"
    r"\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(-?[0-9.,]+)\s*\}|([0-9]))\s*(?:\{\s*(-?[0-9.,]+)\s*\}|([0-9]))"
)
_BRACED_POWER = re.compile(r"\^\s*\{\s*([-+]?[0-9]+)\s*\}")
_EMPHASIS = re.compile(r"(?<![\w)])(?:\*\*|__)|(?:\*\*|__)(?![\w(])|`")  # and not `2**3`
_PAIRS = {("{", "}"), ("(", ")")}
_BRACKET = re.compile(r"[(){},]")
_DASH = re.compile(r"[\u2013\u2014](?=\S)")


def plain_text(text: str) -> str:
    r"""A short text in one spelling: `5/2` for `\frac52`, `72 km` for `$72\text{ km}$`, `*` for `\times`."""
    text = _SPELLING.sub(lambda match: _SPELLINGS[match[0]], ascii_numbers(_THOUSANDS.sub(",", text)))
    text = _RAISED.sub(lambda match: "^" + match[0].translate(_AS_DIGITS), text)
    text = _SPACES.sub(" ", text)
    text = _TEXT.sub(r" \1", _TEXT.sub(r" \1", text))
    text = _FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", text)
    return _bare(_BRACED_POWER.sub(r"^\1", _EMPHASIS.sub("", text)))


def _bare(text: str) -> str:
    """Without the dollars, brackets and points around a whole text; a dash before it is a minus."""
    text = text.strip(" \n\t*_").rstrip(" .,;:*#")
    if text.startswith("$") and text.endswith("$"):
        text = text.strip("$").strip().rstrip(" .,;:")
    while (text[:1], text[-1:]) in _PAIRS and not _BRACKET.search(text, 1, len(text) - 1):
        text = text[1:-1].strip()
    return _DASH.sub("-", text, count=1) if _DASH.match(text) else text
