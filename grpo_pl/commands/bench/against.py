"""Another build of grpo_pl on the same work, by turns: what else the machine does slows both."""

import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_pl.commands.bench import Numbers
from grpo_pl.system.refusal import ConfigError

CLONE = Path(__file__).resolve().parents[3]


def checked_commit(name: str) -> str:
    """The whole name of a commit of the clone that this package stands in."""
    command = ["git", "-C", str(CLONE), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError(
            f"bench: --against={name}: expected a commit of the clone of grpo_pl that runs it, "
            "as by python tools/bench.py"
        ) from None


def unpack(commit: str, folder: Path) -> None:
    """Write the package as it was at a commit into a folder."""
    archive = ["git", "-C", str(CLONE), "archive", commit, "grpo_pl", "configs"]
    content = subprocess.run(archive, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=content, check=True)


def ratio(ours: Sequence[Numbers], theirs: Sequence[Numbers], key: str = "iteration_s") -> dict[str, float]:
    """Our time over theirs: the geometric mean over all iterations but the first, and its 95 % interval."""
    from grpo_pl.commands.compare.statistics.over_seeds import mean_interval

    logs = [math.log(a[key] / b[key]) for a, b in zip(ours[1:], theirs[1:], strict=True)]
    return {name: math.exp(value) for name, value in mean_interval(logs)._asdict().items()}


def compared(commit: str, ours: Sequence[Numbers], theirs: Sequence[Numbers]) -> dict[str, Any]:
    """The ratios to the other build, of an iteration, of its stages, and of the peak memory."""
    stages = {key: f"time/{key}_s" for key in ("generate", "update")}
    return {
        "commit": commit,
        "iteration": ratio(ours, theirs),
        **{name: ratio(ours, theirs, key) for name, key in stages.items()},
        "peak_memory": ratio(ours, theirs, "peak_gib"),
    }
