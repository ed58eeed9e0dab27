"""Makes the rows of a reasoning-gym task in a process of its own, the same ones on every machine and day.

`make_rows` runs this file by its path: importing it as a module of its package would import torch as well.
"""

import os
import pickle
import random
import subprocess
import sys
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Thread
from typing import Any

from grpo_pl.system.refusal import ArgumentError

_MAIN = "import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"


def make_rows(task: str, config: dict[str, Any], size: int, seed: int) -> list[dict[str, Any]]:
    """The entries of rows `0` to `size - 1`, a function of its arguments alone.

    The library alone is not: with `PYTHONHASHSEED` the order of sets of strings changes, and with it the rows
    of six tasks; another draws from Python's global generator. So the process has a fixed hash seed, and
    seeds the global generators for each row. It ends with this one, however that ends.

    Raises:
        ArgumentError: The task makes no such rows.
    """
    with (
        TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-c", _MAIN, __file__, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # its exit code tells
                process.stdin.write(pickle.dumps((task, config, size, seed)))
                process.stdin.flush()
            reply = process.stdout.read()
            exit_code = process.wait()
        except BaseException:
            process.kill()
            raise
        if exit_code:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise ArgumentError(
                f"task={task}: reasoning-gym cannot make its rows with config={config} (exit code "
                f"{exit_code}: {last[0]:.200}); change config"
            )
    rows: list[dict[str, Any]] = pickle.loads(reply)
    return rows


def _main() -> None:
    """Read a request from the standard input, and write the rows to the standard output."""
    task, config, size, seed = pickle.load(sys.stdin.buffer)
    Thread(target=_end_with_parent, daemon=True).start()
    reply = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # some tasks print
    import numpy as np
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **config)
    rows = []
    for index in range(size):
        random.seed(seed + index)
        np.random.seed((seed + index) % 2**32)
        rows.append(_without_date(dataset[index]))
    with reply:
        pickle.dump(rows, reply)


def _without_date(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry without the day of its making, which `time_intervals` notes beside clock times."""
    metadata = entry["metadata"]
    if str(metadata.get("task_type")).startswith("time"):
        entry["metadata"] = {key: metadata[key] for key in metadata if key not in ("start_time", "end_time")}
    return entry


def _end_with_parent() -> None:
    """Wait for the other end of the standard input to close."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    _main()
