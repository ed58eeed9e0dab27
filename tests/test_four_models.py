"""The comparison of algorithms, on the tiny model."""

import subprocess
import sys
from pathlib import Path

from repository import ROOT
from run_results import rows


def compare(out: Path, tiny_model: Path) -> list[list[str]]:
    """The cells of the table of a critic and of none."""
    command = [sys.executable, ROOT / "tools" / "four_models.py", out, "--only", "ppo", "grpo_no_reference"]
    options = ["--config", ROOT / "configs" / "tiny.yaml", "--pretrained", tiny_model]
    options += ["--trainer.max_epochs", 2, "--samples.every", 0]
    subprocess.run([str(part) for part in command + options], check=True, timeout=500)
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (out / "table.md").read_text().splitlines()
    ]


def test_the_table_says_what_the_runs_measured(tiny_model: Path, tmp_path: Path) -> None:
    head, _, *lines = compare(tmp_path, tiny_model)
    assert [line[0] for line in lines] == ["ppo", "grpo_no_reference"]
    for name, *cells in lines:
        first, *_, last = rows(tmp_path / name)
        said = dict(zip(head[1:], cells, strict=True))
        assert said["accuracy before"] == f"{first['val/accuracy']:.3f}"
        assert said["after"] == f"{last['val/accuracy']:.3f}"
        assert said["models held"] == {"ppo": "3", "grpo_no_reference": "1"}[name]
        assert said["peak memory"] == f"{last['memory/peak_gib']:.1f} GiB"
    began = [(tmp_path / name / "config.yaml").stat().st_mtime for name in ("ppo", "grpo_no_reference")]
    compare(tmp_path, tiny_model)
    again = [(tmp_path / name / "config.yaml").stat().st_mtime for name in ("ppo", "grpo_no_reference")]
    assert again == began, "what is finished is not run again"
