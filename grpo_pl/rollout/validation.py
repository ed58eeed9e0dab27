"""Samples the responses to all validation prompts, in as many calls of the engine on every rank."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from grpo_pl.functional import derive_seed, even_parts, rounds
from grpo_pl.prompts.prompt_set import PromptSet
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.types import Rollout


@dataclass(frozen=True, kw_only=True)
class ValidationSampler:
    """Answers every validation prompt of this rank greedily, and by further samples if asked for."""

    prompts: PromptSet
    prompts_per_call: int
    greedy: SamplingConfig
    samples: int
    """Further responses to each prompt; 0 for none."""
    sampling: SamplingConfig
    """How these are drawn."""
    seed: int
    rank: int
    ranks: int

    @property
    def parts(self) -> int:
        """Parts of the prompts, as many on every rank, for several may share one engine."""
        return rounds(len(self.prompts), self.ranks, at_once=self.prompts_per_call)

    @property
    def rollouts(self) -> int:
        """Rollouts of one validation on this rank."""
        return self.parts * (2 if self.samples else 1)

    def sample(self, engine: RolloutEngine, on_stage: Callable[[str], None]) -> Iterator[Rollout]:
        """The rollouts by the engine's weights; the engine rests afterwards."""
        rows = range(self.rank, len(self.prompts), self.ranks)
        prompts = [replace(self.prompts[row], seed=derive_seed(self.seed, "val", row)) for row in rows]
        for some in even_parts(len(prompts), self.parts):
            yield engine.generate(prompts[some.start : some.stop], 1, self.greedy)
            if self.samples:
                yield engine.generate(prompts[some.start : some.stop], self.samples, self.sampling)
            on_stage(f"validate {some.stop}/{len(prompts)}")
        engine.rest()
