"""Measures the startup of commands: CPU seconds, beside those of `import torch`.

python tools/measure_startup.py              # a table; the exit code is 1 where a command is above its limit
python tools/measure_startup.py --repeat 5

Each number is the median over repetitions, which go through all commands in turn, so that all of them meet
the same state of the machine. Before that a command runs once, to cache option names and help texts.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TINY = str(ROOT / "configs" / "tiny.yaml")
TORCH, LIGHTNING = "import torch", "import torch, lightning.pytorch"


class Command(NamedTuple):
    """The words after `python -m grpo_pl`, and their limit as a multiple of an import's cost."""

    words: Sequence[str]
    limit: float
    of: str = TORCH


COMMANDS = (
    Command(["--version"], 0.3),
    Command(["--help"], 1.0),
    Command(["fti"], 1.0),
    *(Command([name, "--help"], 1.0) for name in ("compare", "ablate", "submit", "rollout", "doctor")),
    Command(["fit", "--help"], 1.0),
    Command(["compare", "--bse", "x"], 1.0),
    Command(["fit", "--modle.loss", "X"], 1.0),
    Command(["fit", "--config", TINY, "--trianer.max_epochs", "3"], 1.0),
    Command(["fit", "--config", TINY, "--data.group_size", "four"], 1.5, LIGHTNING),
    Command(["fit", "--config", TINY, "--data.group_size", "0"], 1.5, LIGHTNING),
)


def cpu_s(words: Sequence[str], folder: Path) -> float:
    """User and system time of a Python process in a folder, with all its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(repeat: int) -> dict[str, float]:
    """Command or import -> its median CPU seconds."""
    runs = {code: ["-c", code] for code in (TORCH, LIGHTNING)}
    runs |= {" ".join(command.words): ["-m", "grpo_pl", *command.words] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        cpu_s(["-m", "grpo_pl", "fit", "--help"], Path(folder))
        taken = [{name: cpu_s(words, Path(folder)) for name, words in runs.items()} for _ in range(repeat)]
    return {name: median(each[name] for each in taken) for name in runs}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of each command (%(default)s)")
    seconds = measure(parser.parse_args().repeat)
    print(f"{'CPU s':>7} {'of torch':>9} {'at most':>8}  command")
    for code in (TORCH, LIGHTNING):
        print(f"{seconds[code]:7.2f} {seconds[code] / seconds[TORCH]:9.2f} {'':8}  python -c '{code}'")
    above = 0
    for command in COMMANDS:
        name = " ".join(command.words)
        most = command.limit * seconds[command.of]
        above += seconds[name] > most
        share, limit = seconds[name] / seconds[TORCH], most / seconds[TORCH]
        print(f"{seconds[name]:7.2f} {share:9.2f} {limit:8.2f}  {name.replace(TINY, 'configs/tiny.yaml')}")
    sys.exit(above > 0)


if __name__ == "__main__":
    main()
