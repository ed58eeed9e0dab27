"""Regular expressions that a user wrote."""

import re
import warnings

from grpo_pl.system.refusal import ArgumentError


def compiled(key: str, pattern: str) -> re.Pattern[str]:
    """The compiled pattern; `.` matches line ends too. The refusal of a wrong one names the option `key`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about future meanings of sets
            return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ArgumentError(f"{key}={pattern!r}: expected a regular expression ({error})") from error
