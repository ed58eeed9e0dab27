"""How the rollout of an iteration is sampled: dynamic sampling, greedy answers and prefetching."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from grpo_pl.rollout.dynamic_sampling import DynamicSampling, first_prompts
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.types import Prompt, Rollout, ScoredSamples


@dataclass(frozen=True)
class Sampler:
    """Asks the engine for the rollout of an iteration, by the weights that the engine has."""

    engine: RolloutEngine
    prompts_of: Callable[[int], Sequence[Prompt]]
    """The prompts of an iteration on this rank."""
    group_size: int
    sampling: SamplingConfig
    with_greedy: bool = False
    """Whether a greedy response to each prompt is sampled too."""
    resample: DynamicSampling | None = None
    score: Callable[[Rollout], ScoredSamples] | None = None
    """The rewards, for `resample`."""
    other_prompts: Callable[[int, int, int], Sequence[Prompt]] = lambda *_: []
    """So many other prompts for a round of `resample`: of an iteration, the round and the count."""
    on_any_rank: Callable[[bool], bool] = bool
    """Whether something holds on any rank; collective."""

    def sample(self, iteration: int) -> Rollout:
        """Responses to the prompts of an iteration, or to those that dynamic sampling puts in their place."""
        prompts = self.prompts_of(iteration)
        generate = partial(self.engine.generate, group_size=self.group_size, sampling=self.sampling)
        if self.resample is None:
            rollout = generate(prompts)
        else:
            assert self.score is not None, "dynamic sampling chooses by the rewards"
            others = partial(self.other_prompts, iteration)
            rollout = self.resample(prompts, generate, self.score, others, self.on_any_rank)
        return self._beside_greedy(rollout) if self.with_greedy else rollout

    def _beside_greedy(self, rollout: Rollout) -> Rollout:
        config = SamplingConfig(self.sampling.max_tokens, temperature=0.0)
        greedy = self.engine.generate(first_prompts(rollout), 1, config)
        return replace(rollout, greedy=greedy.samples, besides=[*rollout.besides, greedy])

    def prefetch(self, iteration: int, end: int) -> None:
        """Let an engine that samples ahead begin the iterations after this one, up to `end`."""
        for later in range(iteration + 1, min(iteration + 1 + self.engine.lookahead, end)):
            self.engine.prefetch(self.prompts_of(later), self.group_size, self.sampling)
