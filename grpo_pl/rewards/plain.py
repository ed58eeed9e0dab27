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
FOREIGN = (  # letters that are no variables: Greek ones may be
    "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u052f\u05d0-\u05ea\u0620-\u064a\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3"
)
_UNSPACED = "\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3"
_SEAM = re.compile(rf"(?<=[{_UNSPACED}])(?=[-+$0-9A-Za-z\\.])|(?<=[0-9A-Za-z%*)}}])(?=[{_UNSPACED}])")
_WIDE = {wide: chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F) if wide != 0xFF5C}
_WIDE |= {0x3000: " ", 0x3001: ", ", 0x3002: ". ", 0xFF0C: ", ", 0xFF1A: ": ", 0xFF1B: "; ", 0x2236: ":"}
_ARROWS = re.compile(
    r"(?:\s*(?:=>|->|[\u2192\u21d2\u2234]|\\(?:therefore|(?:[Rr]ight)arrow|implies|to)(?![A-Za-z])))+\s*"
)
_PAIRS = {("{", "}"), ("(", ")")}
_BRACKET = re.compile(r"[(){},]")
_DASH = re.compile(r"[\u2013\u2014](?=\S)")


def western(text: str) -> str:
    """A text with ASCII digits and signs for full-width ones, and a space where Chinese meets a number."""
    return text if text.isascii() else _SEAM.sub(" ", text.translate(_WIDE))


def plain_text(text: str) -> str:
    r"""A short text in one spelling: `5/2` for `\frac52`, `72 km` for `$72\text{ km}$`, `*` for `\times`."""
    text = _SPELLING.sub(
        lambda match: _SPELLINGS[match[0]], ascii_numbers(_THOUSANDS.sub(",", western(text)))
    )
    text = _RAISED.sub(lambda match: "^" + match[0].translate(_AS_DIGITS), text)
    text = _SPACES.sub(" ", text)
    text = _TEXT.sub(r" \1", _TEXT.sub(r" \1", text))
    text = _FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", text)
    return _bare(_BRACED_POWER.sub(r"^\1", _EMPHASIS.sub("", text)))


def _bare(text: str) -> str:
    """Without the dollars, brackets and points around a whole text; a dash before it is a minus."""
    text = text.strip(" \n\t*_").rstrip(" .,;:*#")
    if arrows := _ARROWS.match(text):
        text = text[arrows.end() :]
    if text.startswith("$") and text.endswith("$"):
        text = text.strip("$").strip().rstrip(" .,;:")
    while (text[:1], text[-1:]) in _PAIRS and not _BRACKET.search(text, 1, len(text) - 1):
        text = text[1:-1].strip()
    return _DASH.sub("-", text, count=1) if _DASH.match(text) else text
