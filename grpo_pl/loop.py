"""The RL loop."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from grpo_pl.minibatches import Step, UpdateSchedule, micro_batches
from grpo_pl.models.full_weights import CountedWeights
from grpo_pl.rollout.dynamic_sampling import DynamicSampling
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.sampling import Sampler
from grpo_pl.system.stopwatch import Stopwatch
from grpo_pl.types import Experience, Prompt, Rollout, ScoredSamples


@runtime_checkable
class Learner(Protocol):
    """The LightningModule as the loop and the DataModule see it."""

    min_group_size: int
    """Fewer responses to a prompt give this learner no signal."""
    needs_greedy: bool
    """Whether it needs a greedy response to each prompt."""
    corrects_mismatch: bool
    """Whether it weighs tokens by the ratio of its probabilities to the engine's."""
    head_dtypes: dict[str, str | None]
    """The types in which the LM heads of its language models multiply, by config key; None for their own."""

    @property
    def version(self) -> int:
        """Optimizer steps taken so far."""

    @property
    def reward_names(self) -> Sequence[str]:
        """The names of the rewards, as in `SampleRecord.rewards`."""

    def check_prompts(self, key: str, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts (of config key `key`) whose answers no reward can check."""

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Refuse rollouts without what a term of the loss reads."""

    def policy_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters, whole, one at a time; sharded ones are gathered in the given dtype."""

    def check_environment(self, plays: bool) -> None:
        """Refuse rewards of what an environment pays, where there is none."""

    def score(self, rollout: Rollout) -> ScoredSamples:
        """The rewards of a rollout's responses, computed once."""

    def has_signal(self, rollout: Rollout) -> Bool[Tensor, "N"]:
        """The responses of a scored rollout that can be learned from."""

    def check_resampling(self, resample: DynamicSampling | None) -> None:
        """Refuse dynamic sampling that would judge by rewards which there are not, or replace nothing."""

    def make_experience(self, rollout: Rollout, steps: Sequence[Step]) -> Experience:
        """Rewards, scores and advantages of a rollout, for the given optimizer steps on it."""

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks; collective."""


def experience_stream(
    learner: Learner,
    sampler: Sampler,
    schedule: UpdateSchedule,
    iterations: Iterable[int],
    end: int,
    keep: Callable[[int, Rollout, Experience], None],
    on_stage: Callable[[str], None],
) -> Iterator[Experience]:
    """The whole of reinforcement learning here: between two `yield`s the Trainer takes its optimizer step.

    Args:
        learner: Holds the policy and makes experience of rollouts.
        sampler: Holds the engine and the prompts.
        schedule: Cuts an iteration into optimizer steps.
        iterations: The numbers of the iterations, from 0 or from where a run resumes.
        end: The iteration before which the run ends; nothing is sampled ahead for it.
        keep: Called with each iteration, its rollout and its experience.
        on_stage: Called with the name of each stage as it begins.
    """
    engine = sampler.engine
    for iteration in iterations:
        clock = Stopwatch(on_stage)
        with clock("generate"):
            engine.wait()  # for what it samples ahead, with the weights that it has
        with clock("sync"):
            weights = CountedWeights(learner.policy_weights(engine.weights_dtype))
            engine.load_weights(weights, version=learner.version)
        with clock("generate"):
            rollout = sampler.sample(iteration)  # prompts -> rollout
            engine.rest()
        sampler.prefetch(iteration, end)
        steps = schedule.steps(rollout.lengths, rollout.group_ids.tolist(), iteration, rollout.owners)
        with clock("score"):
            experience = learner.make_experience(rollout, steps)  # -> rewards -> scores -> advantages
        experience.metrics |= clock.seconds | {"sync/gib": weights.gib}
        keep(iteration, rollout, experience)
        on_stage("update")
        yield from micro_batches(experience, steps, learner.sum_over_ranks)  # -> loss -> update
