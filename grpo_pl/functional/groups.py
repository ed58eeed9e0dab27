"""Statistics of each row's group, with and without the row itself."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.functional.statistics import divide_by_std


def group_mean(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """For each row the mean of `x` over the valid rows of its group; 0 for a group without valid rows."""
    group = torch.unique(group_ids, return_inverse=True)[1]
    zeros = x.new_zeros(len(x))
    total = zeros.index_add(0, group, torch.where(valid, x, 0.0))
    count = zeros.index_add(0, group, valid.to(x.dtype))
    return (total / count.clamp(min=1))[group]


def group_std(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"], ddof: int
) -> Float[Tensor, "N"]:
    """For each row the standard deviation over its group's valid rows; the divisor is `count - ddof`."""
    count = group_size(group_ids, valid).to(x.dtype)
    variance = group_mean((x - group_mean(x, group_ids, valid)) ** 2, group_ids, valid)
    return (variance * count / (count - ddof).clamp(min=1)).sqrt()


def group_size(group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]) -> Int[Tensor, "N"]:
    """For each row the number of valid rows in its group."""
    group = torch.unique(group_ids, return_inverse=True)[1]
    return torch.zeros_like(group).index_add(0, group, valid.to(group.dtype))[group]


def group_is_constant(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]
) -> Bool[Tensor, "N"]:
    """For each row whether all valid entries of its group are the very same number: no signal."""
    group = torch.unique(group_ids, return_inverse=True)[1]
    low = x.new_full((len(x),), math.inf).scatter_reduce(0, group, torch.where(valid, x, math.inf), "amin")
    high = x.new_full((len(x),), -math.inf).scatter_reduce(0, group, torch.where(valid, x, -math.inf), "amax")
    return (low >= high)[group]


def groups_with(marked: Bool[Tensor, "N"], group_ids: Int[Tensor, "N"]) -> Bool[Tensor, "G"]:
    """For each group, in ascending order of their ids, whether any of its rows is marked."""
    ids, group = torch.unique(group_ids, return_inverse=True)
    return torch.zeros_like(ids).index_add(0, group, marked.to(ids.dtype)) > 0


def group_normalize(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"], ddof: int, eps: float
) -> Float[Tensor, "N"]:
    """(x - mean) / (std + eps) with the statistics of each group; 0 for invalid rows and constant groups."""
    varies = valid & ~group_is_constant(x, group_ids, valid)
    centred = x - group_mean(x, group_ids, valid)
    return torch.where(varies, divide_by_std(centred, group_std(x, group_ids, valid, ddof), eps), 0.0)


def others_mean(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """For each row the mean of `x` over the *other* valid rows of its group; 0 where there are none."""
    others, present = _others(x, group_ids, valid)
    return others.sum(-1) / present.sum(-1).clamp(min=1)


def others_std(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"], ddof: int
) -> Float[Tensor, "N"]:
    """For each row the standard deviation over the *other* valid rows of its group.

    The divisor is their count less `ddof`. Exactly 0 where they are all the same, or fewer than two.
    """
    others, present = _others(x, group_ids, valid)
    mean = others_mean(x, group_ids, valid)[:, None]
    squares = torch.where(present, (others - mean) ** 2, 0.0).sum(-1)
    low = torch.where(present, others, math.inf).amin(-1)
    high = torch.where(present, others, -math.inf).amax(-1)
    return torch.where(low < high, (squares / (present.sum(-1) - ddof).clamp(min=1)).sqrt(), 0.0)


def _others(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]
) -> tuple[Float[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """For each row the entries of its group, and which of them are valid and not the row's own; else 0."""
    _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    rows = torch.arange(len(x), device=x.device)
    order = torch.argsort(group, stable=True)
    place = rows - (sizes.cumsum(0) - sizes)[group[order]]
    table = torch.full((len(sizes), int(sizes.max())), -1, device=x.device)
    table[group[order], place] = order
    members = table[group]
    present = (members >= 0) & valid[members] & (members != rows[:, None])
    return torch.where(present, x[members], 0.0), present


def max_at_k_gains(rewards: Float[Tensor, "n"], k: int) -> Float[Tensor, "n"]:
    """The gain of each response to the best of k: k times the mean of max(r_i, m) - m.

    m is the greatest reward of k - 1 of the other n - 1 responses, and the mean is over all such choices.
    Summed exactly: a lesser reward with j rewards before it in ascending order is the greatest of
    C(j, k - 2) of the C(n - 1, k - 1) choices. Needs 2 <= k <= n.
    """
    n, below = len(rewards), rewards.sort().values
    chances = [math.comb(j, k - 2) / math.comb(n - 1, k - 1) for j in range(n)]
    return k * (rewards[:, None] - below).clamp(min=0) @ rewards.new_tensor(chances)


def prompt_weights(
    tokens: Int[Tensor, "N"], group_ids: Int[Tensor, "N"], sum_over_ranks: Callable[[Tensor], Tensor]
) -> Float[Tensor, "N"]:
    """The weight of each counted token of a sequence where every prompt counts the same.

    (sequences / prompts) / (counted tokens of all responses to the prompt), where sequences and prompts
    without a counted token do not count; so the mean over sequences of weight times the sum over tokens is
    the mean over prompts, of all ranks, of the mean over tokens.
    """
    group = torch.unique(group_ids, return_inverse=True)[1]
    of_group = torch.zeros_like(tokens).index_add(0, group, tokens)
    counts = sum_over_ranks(torch.stack([(tokens > 0).sum(), (of_group > 0).sum()]))
    return counts[0] / counts[1].clamp(min=1) / of_group[group].clamp(min=1)
