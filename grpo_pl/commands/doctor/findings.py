"""The findings of checks."""

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    verdict: Verdict
    found: str
    """The state of things, in numbers."""
    fix: str = ""
    """The change to make, as a command or a key; empty where nothing is wrong."""
    numbers: dict[str, int | float] = field(default_factory=dict)
    """The measurements, for programs."""

    def __post_init__(self) -> None:
        assert bool(self.fix) == (self.verdict != "ok"), "whatever is wrong can be mended, and nothing else"


def good(check: str, found: str, **numbers: int | float) -> Finding:
    """A finding with nothing to mend."""
    return Finding(check, "ok", found, numbers=numbers)


def warn_if(bad: bool, check: str, found: str, fix: str, **numbers: int | float) -> Finding:
    """A warning if it is bad, else a good finding."""
    return Finding(check, "warning", found, fix, numbers) if bad else good(check, found, **numbers)


def fail_if(bad: bool, check: str, found: str, fix: str, **numbers: int | float) -> Finding:
    """A problem if it is bad, else a good finding."""
    return Finding(check, "problem", found, fix, numbers) if bad else good(check, found, **numbers)


def broken(findings: list[Finding]) -> bool:
    """Whether any finding is a problem."""
    return any(finding.verdict == "problem" for finding in findings)
