"""The contract of a reward that is computed in worker processes."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from typing_extensions import override

from grpo_pl.rewards.base import RewardError, RewardFunction, advice, describe
from grpo_pl.rewards.pool import Outcome, Workers, run_in_workers
from grpo_pl.types import Sample

log = logging.getLogger(__name__)

_COUNTS = {"timeout": "timeouts", "crash": "crashes"}


class WorkerReward(RewardFunction):
    """A reward computed in worker processes: a sample that hangs or crashes them costs itself alone.

    Args:
        workers: The processes, their limits, and the scores of samples that they fail on.
    """

    def __init__(self, *, workers: Workers = Workers(), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        self._failures = Counter(dict.fromkeys(_COUNTS.values(), 0))

    @abstractmethod
    def call(self, sample: Sample) -> partial[Any] | None:
        """A worker's task for a sample: a module's function with data that pickle can carry.

        It returns the score, or None to abstain; None instead of a task abstains as well. Each worker imports
        the module once; if that does not import torch, workers are small and start fast.
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
        """The outcome of each call in the workers."""
        return run_in_workers(calls, calls[0].func.__module__, self.workers) if calls else []

    def _read(self, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> list[float | None]:
        """The scores of samples by the outcomes of their calls; failures are counted."""
        failure_scores = {"timeout": self.workers.on_timeout, "crash": self.workers.on_crash}
        scores: list[Any] = []
        reasons: list[str] = []
        errors: list[str] = []
        for sample, outcome in zip(samples, outcomes, strict=True):
            score = failure_scores[outcome.failure] if outcome.failure else outcome.value
            scores.append(None if score == "abstain" else score)
            error = outcome.error
            if isinstance(outcome.value, str | list | dict):
                error = f"TypeError: it returned {outcome.value!r:.50} and not a number"
                scores[-1] = None
            if outcome.failure is not None:
                self._failures[_COUNTS[outcome.failure]] += 1
            elif error is not None:
                errors.append(f"{error} ({describe(sample)})")
            if reason := outcome.failure or error:
                reasons.append(f"{reason} ({describe(sample)})")
        if errors and self.on_error == "raise":
            kinds = [error.partition(":")[0] for error in errors]
            raise RewardError(f"{errors[0]}; {advice(kinds, len(samples))}")
        if reasons:
            log.warning("%d of %d samples failed in a worker: %s", len(reasons), len(samples), reasons[0])
        return scores
