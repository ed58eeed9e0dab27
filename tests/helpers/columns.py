"""The columns of `metrics.csv` that the README of the callbacks explains."""

import re
from pathlib import Path

from helpers.repository import ROOT
from helpers.run_results import rows


def known_columns() -> dict[str, re.Pattern[str]]:
    """The columns of the README's table, as patterns: `<name>` stands for a word."""
    text = (ROOT / "grpo_pl" / "callbacks" / "README.md").read_text()
    part = text[text.index("## Every column") :]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return {
        name: re.compile(re.sub(r"<\w+>", r"[\\w.]+", re.escape(name).replace(r"\<", "<"))) for name in names
    }


def unknown_columns(folder: Path) -> set[str]:
    columns = {name for row in rows(folder) for name in row}
    assert len(columns) > 10
    return {name for name in columns if not any(known.fullmatch(name) for known in known_columns().values())}
