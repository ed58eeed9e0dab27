"""Ends all ranks when one fails."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.distributed import DistError

from grpo_pl.runs.preemption import Interrupted

POLL_S = 0.2
GRACE_S = 10.0
"""Seconds that a rank with a broken connection waits for the other rank's exit code."""


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """In the body, the first rank of this machine to fail ends all others, with its exit code.

    It replaces Lightning's observer, which kills the first rank when another has failed, so that the exit
    code is lost, and lets the others wait when the first has failed. SLURM and torchrun end their own ranks.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, subprocess_script._SubprocessScriptLauncher):
        yield
        return
    watch = threading.Thread(target=follow, args=(launcher,), daemon=True)
    watch.start()
    try:
        with patch.object(subprocess_script, "_launch_process_observer"):
            yield
    except (Exception, Interrupted) as error:
        if type(error) is RuntimeError or isinstance(error, DistError):  # perhaps a broken connection alone
            watch.join(GRACE_S)
        while launcher.procs:  # or `follow` would take their end for the cause
            launcher.procs.pop().kill()
        raise


def follow(launcher: subprocess_script._SubprocessScriptLauncher) -> None:
    """End this process and all ranks that it has started when one of them fails."""
    while True:
        failed = [code for process in launcher.procs if (code := process.poll())]
        if failed:
            for process in launcher.procs:
                process.kill()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(failed[0] if failed[0] > 0 else 128 - failed[0])
        time.sleep(POLL_S)
