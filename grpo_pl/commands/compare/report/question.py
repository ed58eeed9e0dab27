"""The question of a study, from its file."""

import re

from grpo_pl.commands.compare.comparison import Comparison
from grpo_pl.commands.compare.declared import STUDY_FILE


def question(comparison: Comparison) -> str:
    """The first sentence of the study that all runs are of; empty for runs of none."""
    runs = [run for group in comparison.groups for run in group.runs]
    folders = {run.folder.parent.parent if run.place else None for run in runs}
    folder = folders.pop() if len(folders) == 1 else None
    if folder is None or not (folder / STUDY_FILE).exists():
        return ""
    return first_sentence((folder / STUDY_FILE).read_text(encoding="utf-8", errors="replace"))


def first_sentence(text: str) -> str:
    """The first sentence of the comment that a YAML file begins with, before any indented command."""
    lines = []
    for line in text.lstrip().splitlines():
        comment = re.fullmatch(r"#( ?)(\S.*)", line)
        if comment is None:
            break
        lines.append(comment[2].strip())
    sentence = re.match(r".+?[.?!](?=\s+[A-Z]|$)", " ".join(lines))
    return sentence[0] if sentence else " ".join(lines)
