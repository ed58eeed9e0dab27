"""Reads a few responses without an advantage, so that metrics are estimates over all responses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.functional import ratio_sample
from grpo_pl.types import Sequences


@dataclass(frozen=True)
class SilentSample:
    """Which of the responses without an advantage are read, and how many tokens each of theirs stands for.

    A token of a response with an advantage counts once, one of the sample (tokens of all silent responses) /
    (tokens of the sample) times. The expectation of such a mean is the mean over the tokens of all responses,
    exactly: `ratio_sample`. The choice depends on the policy's version and on the lengths alone.
    """

    count: int
    """Responses to read, over all ranks; 0 for none."""
    rank: int
    ranks: int
    sum_over_ranks: Callable[[Tensor], Tensor]

    def __call__(
        self, sequences: Sequences, version: int
    ) -> tuple[Bool[Tensor, "N"] | None, Float[Tensor, "N"] | None]:
        """The sequences to read, and how many tokens each token of theirs stands for; collective."""
        active = sequences.active
        if self.count == 0 or active is None:
            return active, None
        tokens = torch.where(active, 0, sequences.loss_mask.sum(-1))
        lengths = tokens.new_zeros(self.ranks, len(tokens))
        lengths[self.rank] = tokens
        of_all = self.sum_over_ranks(lengths.flatten()).tolist()
        chosen = ratio_sample(of_all, self.count, version)
        first = self.rank * len(tokens)
        here = [row - first for row in chosen if 0 <= row - first < len(tokens)]
        stands_for = torch.ones_like(tokens, dtype=torch.float32)
        stands_for[here] = sum(of_all) / max(sum(of_all[row] for row in chosen), 1)
        read = active.clone()
        read[here] = True
        return read, stands_for
