"""Samples the rollout of an iteration: dynamic sampling, greedy responses and prefetching."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor

from grpo_pl.rollout.dynamic_sampling import DynamicSampling, first_prompts
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.types import Prompt, Rollout, ScoredSamples


@runtime_checkable
class Judge(Protocol):
    """The learner as dynamic sampling sees it."""

    def score(self, rollout: Rollout) -> ScoredSamples:
        """The rewards of a rollout's responses, computed once."""

    def has_signal(self, rollout: Rollout) -> Bool[Tensor, "N"]:
        """The responses of a scored rollout that can be learned from."""


@dataclass(frozen=True)
class Sampler:
    """Samples the rollout of an iteration with the engine's current weights."""

    engine: RolloutEngine
    prompts_of: Callable[[int], Sequence[Prompt]]
    """The prompts of an iteration on this rank."""
    group_size: int
    sampling: SamplingConfig
    with_greedy: bool = False
    """Whether a greedy response to each prompt is sampled too."""
    resample: DynamicSampling | None = None
    judge: Judge | None = None
    """The rewards, for `resample`."""
    other_prompts: Callable[[int, int, int], Sequence[Prompt]] = lambda *_: []
    """Other prompts for `resample`, by iteration, round and count."""
    on_any_rank: Callable[[bool], bool] = bool
    """Whether something holds on any rank; collective."""

    def sample(self, iteration: int) -> Rollout:
        """Responses to the prompts of an iteration, or to their replacements by dynamic sampling."""
        prompts = self.prompts_of(iteration)
        generate = partial(self.engine.generate, group_size=self.group_size, sampling=self.sampling)
        if self.resample is None:
            rollout = generate(prompts)
        else:
            assert self.judge is not None, "dynamic sampling chooses by the rewards"
            others, judge = partial(self.other_prompts, iteration), self.judge
            rollout = self.resample(
                prompts, generate, judge.score, others, self.on_any_rank, judge.has_signal
            )
        if not self.with_greedy:
            return rollout
        config = SamplingConfig(self.sampling.max_tokens, temperature=0.0)
        greedy = self.engine.generate(first_prompts(rollout), 1, config)
        return replace(rollout, greedy=greedy.samples, besides=[*rollout.besides, greedy])

    def prefetch(self, iteration: int, end: int) -> None:
        """Let an engine that samples ahead begin the iterations after this one, before `end`."""
        for later in range(iteration + 1, min(iteration + 1 + self.engine.lookahead, end)):
            self.engine.prefetch(self.prompts_of(later), self.group_size, self.sampling)
