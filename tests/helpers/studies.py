"""Studies on a tiny model, run by the command `ablate`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from helpers.repository import ROOT

VARIANTS: dict[str, Any] = {"grpo": {}, "no_kl": {"model": {"kl": None}}}


def write_study(folder: Path, pretrained: Path, variants: dict[str, Any], **keys: Any) -> Path:
    base = [str(ROOT / "configs" / "tiny.yaml"), {"pretrained": str(pretrained)}]
    content = {"base": base, "variants": variants, "seeds": [1], "budget": {"iterations": 2}} | keys
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def start(study: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """`ablate` in a process of its own."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return subprocess.Popen(
        [sys.executable, "-m", "grpo_pl", "ablate", str(study), "--out", str(out), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ablate(study: Path, out: Path, *arguments: str) -> tuple[int, str]:
    """`ablate` to its end: exit code and what it says."""
    process = start(study, out, *arguments)
    text, _ = process.communicate(timeout=900)
    return process.returncode, text
