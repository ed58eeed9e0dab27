"""The exits of a command: a user's mistake ends it with one sentence and exit code 2."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from grpo_pl.system.atomic_files import DiskFullError
from grpo_pl.system.refusal import ConfigError, fail

STOPPED = 1
"""Exit code of a run that a guard, an alarm or the loss of its engine has ended."""


@contextmanager
def mistakes_answered() -> Iterator[None]:
    """End with one sentence and exit code 2 if the body raises a user's mistake."""
    try:
        yield
    except DiskFullError as error:
        refuse(error)
    except FileNotFoundError as error:
        if "Checkpoint" in str(error):
            fail(f"ckpt_path: {error}")
        raise
    except (Exception, SystemExit) as error:
        if not isinstance(error, ConfigError | SystemExit):
            answer_for_a_run(error)
        if cause := own_cause(error):
            refuse(cause)
        raise


def answer_for_a_run(error: Exception) -> None:
    """End if the error is one that ends a run; a command that has run nothing need not import these."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from grpo_pl.callbacks.guard import RunStoppedError
    from grpo_pl.rewards.base import RewardError
    from grpo_pl.rollout.engine import EngineLostError

    if isinstance(error, RunStoppedError | EngineLostError):
        stop(error)
    if isinstance(error, RewardError | MisconfigurationException):
        refuse(error)


def own_cause(error: BaseException) -> ConfigError | None:
    """The user's mistake behind an error; jsonargparse wraps it where a component may be null."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__
    return cause


def stop(error: Exception) -> NoReturn:
    """Print why a run has ended early, once for all ranks, and end with exit code 1."""
    sys.stdout.flush()
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only(print)(f"grpo_pl: stopped: {error}", file=sys.stderr)
    raise SystemExit(STOPPED)


def refuse(error: Exception) -> NoReturn:
    """End with the error's sentence; `GRPO_PL_TRACEBACK=1` shows its traceback."""
    if os.environ.get("GRPO_PL_TRACEBACK"):
        raise error
    fail(str(error))
