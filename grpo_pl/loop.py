"""The RL loop."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from grpo_pl.functional import balanced_partition, derive_seed, permutation
from grpo_pl.rollout.dynamic_sampling import DynamicSampling, first_prompts
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.types import Experience, Prompt, Rollout, SampleRecord

Step = list[list[int]]
"""The rows of one optimizer step: K micro-batches."""


@runtime_checkable
class Learner(Protocol):
    """What the loop and the DataModule need of the LightningModule."""

    min_group_size: int
    """Fewer responses to a prompt give this learner no signal."""
    needs_greedy: bool
    """Whether it compares with a greedy response to each prompt."""
    corrects_mismatch: bool
    """Whether it weighs tokens by how much likelier they are to it than to the engine that sampled them."""

    @property
    def version(self) -> int:
        """Optimizer steps taken so far."""
        ...

    def check_prompts(self, key: str, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts (of config key `key`) whose answers no reward could ever check."""
        ...

    def policy_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters, whole, one at a time; sharded ones are gathered in the given dtype."""
        ...

    def groups_with_signal(self, rollout: Rollout) -> Sequence[bool]:
        """Of each group, whether the rewards of its responses differ."""
        ...

    def make_experience(self, rollout: Rollout, steps: Sequence[Step]) -> Experience:
        """Rewards, scores and advantages of a rollout that is learned from in the given optimizer steps."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks; collective."""
        ...


@dataclass(frozen=True)
class UpdateSchedule:
    """How a rollout becomes optimizer steps: passes of minibatches of micro-batches."""

    minibatches: int
    update_epochs: int
    micro_batches: int
    seed: int

    @property
    def batches_per_iteration(self) -> int:
        """Micro-batches that one rollout gives."""
        return self.update_epochs * self.minibatches * self.micro_batches

    def steps(
        self, lengths: Sequence[int], iteration: int, group_ids: Sequence[int] | None = None
    ) -> list[Step]:
        """The optimizer steps of a rollout in their order: one epoch after the other."""
        epochs = range(self.update_epochs)
        return [step for e in epochs for step in self.epoch(lengths, iteration, e, group_ids)]

    def epoch(
        self, lengths: Sequence[int], iteration: int, epoch: int, group_ids: Sequence[int] | None = None
    ) -> list[Step]:
        """One pass over all rows in random order: equal minibatches, cut into micro-batches by length.

        Rows of one group stay together where `group_ids` are given.
        """
        units: dict[int, list[int]] = {}
        for row, unit in enumerate(range(len(lengths)) if group_ids is None else group_ids):
            units.setdefault(unit, []).append(row)
        shuffled = permutation(len(units), derive_seed(self.seed, "update", iteration, epoch))
        order = [list(units.values())[i] for i in shuffled]
        size = len(order) // self.minibatches
        return [self._cut(order[i * size : (i + 1) * size], lengths) for i in range(self.minibatches)]

    def _cut(self, units: list[list[int]], lengths: Sequence[int]) -> Step:
        tokens = [sum(lengths[row] for row in unit) for unit in units]
        parts = balanced_partition(tokens, self.micro_batches)
        return [[row for i in part for row in units[i]] for part in parts]


@dataclass
class Stopwatch:
    """Seconds spent in each stage of an iteration; tells whoever listens which one is under way."""

    on_stage: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body under the metric `time/{stage}_s`."""
        self.on_stage(stage)
        key, start = f"time/{stage}_s", time.perf_counter()
        yield
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - start


class Counted:
    """Weights on their way, and the bytes of those that have passed."""

    def __init__(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self.weights, self.bytes = weights, 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.weights:
            self.bytes += tensor.nbytes
            yield name, tensor


def on_any_rank(learner: Learner) -> Callable[[bool], bool]:
    """Whether something holds on any rank, asked by all of them at once."""
    return lambda here: bool(learner.sum_over_ranks(torch.tensor(int(here))) > 0)


def first_pass(steps: Sequence[Step]) -> list[Step]:
    """The steps in which every row is read for the first time."""
    seen: set[int] = set()
    for i, step in enumerate(steps):
        rows = {row for micro_batch in step for row in micro_batch}
        if rows & seen:
            return list(steps[:i])
        seen |= rows
    return list(steps)


def sample_rollout(
    learner: Learner,
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    *,
    group_size: int,
    sampling: SamplingConfig,
    resample: DynamicSampling | None = None,
    other_prompts: Callable[[int, int], list[Prompt]] = lambda *_: [],
) -> Rollout:
    """Responses to the prompts, or to others that dynamic sampling puts in place of some; greedy ones too."""
    generate = partial(engine.generate, group_size=group_size, sampling=sampling)
    if resample is None:
        rollout = generate(prompts)
    else:
        rollout = resample(prompts, generate, learner.groups_with_signal, other_prompts, on_any_rank(learner))
    if not learner.needs_greedy:
        return rollout
    greedy = engine.generate(first_prompts(rollout), 1, SamplingConfig(sampling.max_tokens, temperature=0.0))
    return replace(rollout, greedy=greedy.samples, besides=[*rollout.besides, greedy])


def experience_stream(
    learner: Learner,
    engine: RolloutEngine,
    iterations: Iterable[int],
    prompts_of: Callable[[int], list[Prompt]],
    *,
    end: int,
    group_size: int,
    sampling: SamplingConfig,
    schedule: UpdateSchedule,
    keep_groups: bool,
    resample: DynamicSampling | None,
    other_prompts: Callable[[int, int, int], list[Prompt]],
    keep: Callable[[int, Rollout, list[SampleRecord]], None],
    on_stage: Callable[[str], None],
) -> Iterator[Experience]:
    """The whole of reinforcement learning here: between two `yield`s the Trainer takes its optimizer step."""
    for iteration in iterations:
        prompts, clock = prompts_of(iteration), Stopwatch(on_stage)
        with clock("generate"):
            engine.wait()
        with clock("sync"):
            weights = Counted(learner.policy_weights(engine.weights_dtype))
            engine.load_weights(weights, version=learner.version)
        with clock("generate"):
            rollout = sample_rollout(
                learner,
                engine,
                prompts,
                group_size=group_size,
                sampling=sampling,
                resample=resample,
                other_prompts=partial(other_prompts, iteration),
            )
            engine.rest()
        for later in range(iteration + 1, min(iteration + 1 + engine.lookahead, end)):
            engine.prefetch(prompts_of(later), group_size, sampling)
        together = rollout.group_ids.tolist() if keep_groups else None
        steps = schedule.steps(rollout.lengths, iteration, together)
        with clock("score"):
            experience = learner.make_experience(rollout, steps)
        keep(iteration, rollout, experience.records)
        experience.metrics |= clock.seconds | {"sync/gib": weights.bytes / 2**30}
        on_stage("update")
        yield from micro_batches(experience, steps, learner.sum_over_ranks)


def micro_batches(
    experience: Experience, steps: Sequence[Step], sum_over_ranks: Callable[[Tensor], Tensor]
) -> Iterator[Experience]:
    """Cut the experience; each piece knows the size of its step, the first one carries the metrics."""
    tokens = experience.counted.sum(-1).cpu()
    flat = [[row for rows in step for row in rows] for step in steps]
    local = torch.tensor([[int(tokens[rows].sum()), int((tokens[rows] > 0).sum())] for rows in flat])
    totals = sum_over_ranks(local).tolist()
    first = True
    for step, (num_tokens, num_sequences) in zip(steps, totals, strict=True):
        for rows in step:
            piece = experience.select(
                experience.among(rows), num_tokens=num_tokens, num_sequences=num_sequences
            )
            if first:
                piece.metrics, piece.records, first = experience.metrics, experience.records, False
            yield piece
