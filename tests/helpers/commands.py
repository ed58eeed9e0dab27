"""One way each to run a command of grpo_pl, to expect that it refuses or stops, and to start a process.

The fixtures stand in tests/conftest.py, their types here:

    folder = fit("--model.kl", "null")                     # `grpo_pl fit` on configs/tiny.yaml
    folder = fit("--trainer.strategy", "ddp", ranks=2)     # the same on two ranks
    sentence = refused(fit, "--data.minibatches", 3)       # exit code 2 and one sentence
    sentence = refused(command, "compare", "no/such/run")  # the same of any command
    sentence = refused(over_a_run, "--data.group_size 1")  # the same, and an earlier run stays as it was
    sentence = stopped(fit, *callback("Poison"))           # exit code 1: a guard or an alarm ended the run
    done = process("-m", "grpo_pl", "fit")                 # a process of its own: exit code and output
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.repository import ROOT

Fit = Callable[..., Path]
Refused = Callable[..., str]
Stopped = Callable[..., str]
OverARun = Callable[..., None]
PATHS = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
NO_TRACES = ("Traceback", "usage:", "Union", "Parser key", "<class", "Namespace(", "typing.")


def command(*words: object) -> None:
    """`grpo_pl WORDS` in this process."""
    from grpo_pl.__main__ import main

    main([str(word) for word in words])


def process(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in a new process, which imports from the clone and from tests/."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS} | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def refusal_in(stderr: str) -> str:
    """The sentence of a refused command, which wrote nothing else."""
    text = "\n".join(line for line in stderr.splitlines() if line and "Loading weights" not in line)
    assert text.startswith("grpo_pl: error: "), text
    assert "\n" not in text, text
    assert not [trace for trace in NO_TRACES if trace in text], text
    return text
