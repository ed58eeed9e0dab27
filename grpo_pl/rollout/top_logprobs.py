"""The sampler's likeliest tokens before each sampled one, as a rollout keeps them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.rollout.support import NONE


def lay_out_top(
    responses: Sequence[tuple[Int[Tensor, "_ K"], Float[Tensor, "_ K"]]], mask: Bool[Tensor, "N T"]
) -> tuple[Int[Tensor, "N T K"], Float[Tensor, "N T K"]]:
    """The ids and log-probabilities of all sampled tokens in their places, as one batch."""
    number = responses[0][0].shape[1]
    tokens = torch.full((*mask.shape, number), NONE, dtype=torch.int32)
    logprobs = torch.zeros(tokens.shape)
    tokens[mask] = torch.cat([ids for ids, _ in responses]).int()
    logprobs[mask] = torch.cat([of_ids for _, of_ids in responses]).float()
    return tokens, logprobs


def stacked(steps: Sequence[tuple[Tensor, Tensor]]) -> tuple[Int[Tensor, "L K"], Float[Tensor, "L K"]]:
    """The ids and the log-probabilities of a response, from those of each of its tokens."""
    ids, logprobs = zip(*steps, strict=True)
    return torch.stack(ids), torch.stack(logprobs)
