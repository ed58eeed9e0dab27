"""What the pilot runs of a study have shown, in its report."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from grpo_pl.commands.compare.report.document import Section, Table
from grpo_pl.commands.compare.report.wording import number
from grpo_pl.system.atomic_files import write_atomically

TUNED_FILE = "tuned.yaml"


class Tuned(NamedTuple):
    """What was chosen for a variant, and what was tried."""

    chosen: dict[str, Any]
    """Dotted key -> its value."""
    tried: list[tuple[dict[str, Any], float | None]]
    """Settings and the mean of their pilot runs; None if one of these did not come to its end."""


def write_tuned(tuned: dict[str, Tuned], folder: Path) -> None:
    """Write what was chosen and tried into a study's folder, beside other variants of an earlier time."""
    path = folder / TUNED_FILE
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    content = before | {
        name: {"chosen": each.chosen, "tried": [setting | {"mean": mean} for setting, mean in each.tried]}
        for name, each in tuned.items()
    }
    write_atomically(path, yaml.safe_dump(content, sort_keys=False))


def tuning(folder: Path) -> list[Section]:
    """The section on what was tuned in a study's folder; none if nothing was."""
    path = folder / TUNED_FILE
    if not path.exists():
        return []
    content: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    first = next(iter(content.values()))
    tried = [label({k: v for k, v in one.items() if k != "mean"}) for one in first["tried"]]
    rows = [
        [name, *(number(one["mean"]) for one in each["tried"]), label(each["chosen"])]
        for name, each in content.items()
    ]
    keys = ", ".join(first["chosen"])
    text = f"Before the study, {keys} was chosen for each variant by the mean of pilot runs with other seeds."
    return [Section("Tuning", [text], [Table(["", *tried, "chosen"], rows)])]


def label(setting: dict[str, Any]) -> str:
    """`lr 0.0001`."""
    return ", ".join(f"{key.rpartition('.')[2]} {value:g}" for key, value in setting.items())
