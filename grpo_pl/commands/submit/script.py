"""A job script: one of the templates beside this file with its values replaced."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TEMPLATES = Path(__file__).parent
SHELL_OPTIONS = "set -euo pipefail"
"""The line between a template's directives and its commands."""
Directives = Mapping[str, str | None]
"""The directives of one part of a job: long name of an sbatch option -> value; None removes it."""


def fill(template: str, parts: Sequence[Directives], commands: Sequence[str]) -> str:
    """A template with changed directives, and with shell commands before its own.

    Args:
        template: The name of the template.
        parts: The changed and added directives of each part of a heterogeneous job.
        commands: The shell commands.
    """
    text = (TEMPLATES / f"{template}.sbatch").read_text(encoding="utf-8")
    header, rest = text.split(f"\n{SHELL_OPTIONS}\n")
    lines = [line for line in header.splitlines() if not line.startswith("# ")]
    return "\n".join([*directives(lines, parts), SHELL_OPTIONS, *commands, rest])


def directives(lines: Sequence[str], parts: Sequence[Directives]) -> Iterator[str]:
    """The header's lines, with the parts' values in place of the template's."""
    later = iter(parts)
    missing = dict(next(later))
    for line in lines:
        if line == "#SBATCH hetjob":
            yield from written(missing)
            missing = dict(next(later))
        option = re.match(r"#SBATCH --([\w-]+)", line)
        if option and option[1] in missing:
            yield from written({option[1]: missing.pop(option[1])})
        else:
            yield line
    yield from written(missing)


def written(values: Directives) -> Iterator[str]:
    """The lines of some directives."""
    return (f"#SBATCH --{name}={value}" for name, value in values.items() if value is not None)
