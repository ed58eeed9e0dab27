"""Reduces the libraries' output to what a user can act on."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "critical",  # errors of files are raised as well
    "TOKENIZERS_PARALLELISM": "false",
}
VERBOSE = "GRPO_PL_VERBOSE"
"""Environment variable that shows all messages of the libraries."""


def tame_logs() -> None:
    """Show grpo_pl's own messages; quieten the libraries unless `GRPO_PL_VERBOSE` is set."""
    log = logging.getLogger("grpo_pl")
    if not log.handlers:
        rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0"))
        log.setLevel(logging.INFO if rank == "0" else logging.WARNING)
        log.addHandler(StandardOutput())
        log.propagate = False
    if os.environ.get(VERBOSE):
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    logging.getLogger("transformers").setLevel(logging.ERROR)  # where it was imported before
    if datasets := sys.modules.get("datasets"):  # it reads its variables when it is imported
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"lightning\..*", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*torch.distributed.reduce_op.*")
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each rank reads its own
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


class StandardOutput(logging.Handler):
    """Writes messages as plain lines to whatever `sys.stdout` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        print(self.format(record), flush=True)


@contextmanager
def captured_output() -> Iterator[None]:
    """Capture the output of C++ and Python in the body, and show it if the body fails."""
    if os.environ.get(VERBOSE):
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
        except BaseException as error:
            restore(kept)
            if isinstance(error, Exception):  # not an interruption
                file.seek(0)
                sys.stderr.write(file.read().decode(errors="replace"))
            raise
        restore(kept)


def restore(descriptors: tuple[int, int]) -> None:
    """Make the saved descriptors standard output and standard error again."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number, kept in zip((1, 2), descriptors, strict=True):
        os.dup2(kept, number)
        os.close(kept)
