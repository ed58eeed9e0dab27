"""What a study's file declares about its comparison: the base, the metric and the margin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from grpo_pl.commands.compare.cells import cell_name
from grpo_pl.commands.compare.runs import ACCURACY

STUDY_FILE = "study.yaml"
"""The copy of a study's file in its folder."""


class Declared(NamedTuple):
    """What `compare` goes by where its options do not say."""

    base: str | None = None
    """The study's first variant; None outside a study, or if it has no run yet."""
    metric: str = ACCURACY
    margin: float | None = None


def declared(runs: list[Path]) -> Declared:
    """What the study says whose folder is compared; nothing for any other folders."""
    if len(runs) != 1 or not (runs[0] / STUDY_FILE).is_file():
        return Declared()
    content = yaml.safe_load((runs[0] / STUDY_FILE).read_text(encoding="utf-8"))  # as `ablate` has read it
    base = first_variant(content)
    margin = content.get("margin")
    return Declared(
        base if (runs[0] / base).is_dir() else None,
        str(content.get("metric", ACCURACY)),
        None if margin is None else float(margin),
    )


def first_variant(content: Mapping[str, Any]) -> str:
    """The name of the variant that all others are compared with."""
    if "factors" in content:
        return cell_name({factor: str(next(iter(levels))) for factor, levels in content["factors"].items()})
    return str(next(iter(content["variants"])))
