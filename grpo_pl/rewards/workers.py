"""The contract of a reward that is computed in killable processes."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from typing_extensions import override

from grpo_pl.rewards.base import RewardError, RewardFunction, describe
from grpo_pl.rewards.pool import Outcome, Workers, run_in_workers
from grpo_pl.types import Sample

_logger = logging.getLogger(__name__)

_COUNTS = {"timeout": "timeouts", "crash": "crashes"}


class WorkerReward(RewardFunction):
    """A reward whose samples are computed in worker processes: one that hangs or crashes costs itself alone.

    Args:
        workers: the processes, their limits, and what a sample that they fail on is worth.
    """

    def __init__(self, *, workers: Workers = Workers(), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        self._failures = Counter(dict.fromkeys(_COUNTS.values(), 0))

    @abstractmethod
    def call(self, sample: Sample) -> partial[Any] | None:
        """What a worker computes for a sample: a module's function with data that pickle can carry.

        It returns the score, or None to abstain; None in its place abstains as well. Its module is imported
        once in each worker; where that does not import torch, a worker is small and starts fast.
        """

    @property
    @override
    def failures(self) -> Mapping[str, int]:
        return self._failures

    @override
    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        calls = {row: call for row, sample in enumerate(samples) if (call := self.call(sample)) is not None}
        outcomes = dict(zip(calls, self.compute(list(calls.values())), strict=True))
        return self._read(samples, [outcomes.get(row, Outcome()) for row in range(len(samples))])

    def compute(self, calls: Sequence[partial[Any]]) -> list[Outcome]:
        """What became of each call in the workers."""
        return run_in_workers(calls, calls[0].func.__module__, self.workers) if calls else []

    def _read(self, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> list[float | None]:
        """The scores that samples get for what became of their calls; failures are counted."""
        declared = {"timeout": self.workers.on_timeout, "crash": self.workers.on_crash}
        scores: list[Any] = []
        lost: list[str] = []
        for sample, outcome in zip(samples, outcomes, strict=True):
            score = declared[outcome.failure] if outcome.failure else outcome.value
            scores.append(None if score == "abstain" else score)
            error = outcome.error
            if isinstance(outcome.value, str | list | dict):
                error = f"TypeError: it returned {outcome.value!r:.50} and not a number"
                scores[-1] = None
            if outcome.failure is not None:
                self._failures[_COUNTS[outcome.failure]] += 1
            elif error is not None and self.on_error == "raise":
                raise RewardError(f"{error} ({describe(sample)}); on_error: abstain would skip such samples.")
            if reason := outcome.failure or error:
                lost.append(f"{reason} ({describe(sample)})")
        if lost:
            _logger.warning("%d of %d samples failed in a worker: %s", len(lost), len(samples), lost[0])
        return scores
