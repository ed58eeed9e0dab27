"""What an environment pays, as a reward of turns, and whether an episode has succeeded."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, final

from typing_extensions import override

from grpo_pl.rewards.base import ProcessReward, Verifier
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Sample, StepScore


def checked(sample: Sample) -> Sample:
    """The sample, if it is an episode."""
    if sample.stop is None:
        raise ValueError("the response is no episode of an environment: set data.environment")
    return sample


@final
class EnvironmentReward(ProcessReward):
    """What the environment pays for each turn: the steps of this process reward are the turns.

    A turn's reward stands on the last token that the policy said in it; the score of an episode is the sum.
    `GroupRelative` and other estimators of outcomes see the sum, `ProcessGroupRelative` and `GAE` the turns.
    """

    needs_environment: ClassVar[bool] = True

    @override
    def score_steps(self, samples: Sequence[Sample]) -> list[list[StepScore]]:
        return [checked(sample).turns for sample in samples]


@final
class EnvironmentSuccess(Verifier):
    """1 if the environment has ended the episode and paid enough for all of its turns, else 0.

    An episode that reached a limit has not succeeded, whatever it was paid. There is no answer to vote for.

    Args:
        threshold: The least sum of the environment's rewards.
    """

    needs_environment: ClassVar[bool] = True

    def __init__(self, threshold: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not math.isfinite(threshold):
            raise ArgumentError(f"threshold={threshold}: expected a finite number")
        self.threshold = threshold

    @override
    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [float(self._succeeded(checked(sample))) for sample in samples]

    def _succeeded(self, sample: Sample) -> bool:
        return sample.stop == "done" and math.fsum(turn.score for turn in sample.turns) >= self.threshold

    @override
    def extract(self, response: str) -> None:
        """None: what the policy says is no answer."""

    @override
    def right_response(self, prompt: Prompt) -> None:
        """None: a single response is no episode."""
