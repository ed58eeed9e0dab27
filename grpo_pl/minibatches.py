"""Experience -> optimizer steps of micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_pl.functional import balanced_partition, derive_seed, even_parts, permutation
from grpo_pl.types import Experience

Step = list[list[int]]
"""The rows of one optimizer step: K micro-batches."""


@dataclass(frozen=True)
class UpdateSchedule:
    """How a rollout becomes optimizer steps: passes of minibatches of micro-batches."""

    minibatches: int
    update_epochs: int
    micro_batches: int
    seed: int
    keep_groups: bool = False
    """Whether the responses to a prompt stay in one micro-batch."""

    @property
    def batches_per_iteration(self) -> int:
        """Micro-batches of one rollout."""
        return self.update_epochs * self.minibatches * self.micro_batches

    def steps(
        self,
        lengths: Sequence[int],
        group_ids: Sequence[int],
        iteration: int,
        episodes: Sequence[int] | None = None,
    ) -> list[Step]:
        """The optimizer steps of a rollout in their order: one epoch after the other.

        `lengths` are in tokens; the random order depends on the iteration. The rows of one of `episodes`
        stay in one micro-batch.
        """
        units = group_ids if self.keep_groups else episodes or range(len(lengths))
        return [step for e in range(self.update_epochs) for step in self.epoch(lengths, units, iteration, e)]

    def epoch(self, lengths: Sequence[int], units: Sequence[int], iteration: int, epoch: int) -> list[Step]:
        """One pass over all rows in random order: equal minibatches, cut into micro-batches by length.

        Rows of one unit stay together. Minibatches that cannot be equal differ by one unit.
        """
        rows_of: dict[int, list[int]] = {}
        for row, unit in enumerate(units):
            rows_of.setdefault(unit, []).append(row)
        shuffled = permutation(len(rows_of), derive_seed(self.seed, "update", iteration, epoch))
        order = [list(rows_of.values())[i] for i in shuffled]
        parts = even_parts(len(order), self.minibatches)
        return [self._cut([order[i] for i in part], lengths) for part in parts]

    def _cut(self, units: list[list[int]], lengths: Sequence[int]) -> Step:
        tokens = [sum(lengths[row] for row in unit) for unit in units]
        parts = balanced_partition(tokens, self.micro_batches)
        return [[row for i in part for row in units[i]] for part in parts]


def first_pass(steps: Sequence[Step]) -> list[Step]:
    """The steps in which every row is read for the first time."""
    seen: set[int] = set()
    for i, step in enumerate(steps):
        rows = {row for micro_batch in step for row in micro_batch}
        if rows & seen:
            return list(steps[:i])
        seen |= rows
    return list(steps)


def micro_batches(
    experience: Experience, steps: Sequence[Step], sum_over_ranks: Callable[[Tensor], Tensor]
) -> Iterator[Experience]:
    """Cut the experience; each piece knows the size of its step, the first piece carries the metrics."""
    counted, of_all = experience.counted.sum(-1).tolist(), experience.loss_mask.sum(-1).tolist()
    flat = [[row for rows in step for row in rows] for step in steps]
    owners = range(len(counted)) if experience.episodes is None else experience.episodes.tolist()

    def sequences(tokens: list[int], rows: list[int]) -> int:
        return len({owners[row] for row in rows if tokens[row]})

    local = torch.tensor(
        [
            [n for x in (counted, of_all) for n in (sum(x[row] for row in rows), sequences(x, rows))]
            for rows in flat
        ]
    )
    names = ("num_tokens", "num_sequences", "all_tokens", "all_sequences")
    of_iteration = {"metrics": experience.metrics, "records": experience.records}
    for step, sizes in zip(steps, sum_over_ranks(local).tolist(), strict=True):
        for rows in step:
            of_step = dict(zip(names, sizes, strict=True))
            yield experience.select(experience.among(rows), **of_step, **of_iteration)
            of_iteration = {}
