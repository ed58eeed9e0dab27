"""Means and standard deviations over the entries of a mask, on all ranks; whether numbers are finite."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of `x` where `mask` is True; 0 where nothing is."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def mean_and_std(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    ddof: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and standard deviation of the masked entries of all ranks; the divisor is `count - ddof`.

    Summed in float64. A spread within 8 roundings of the mean counts as none: the standard deviation is then
    exactly 0.
    """
    exact = torch.where(mask, x, 0.0).double()
    total, count = sum_over_ranks(torch.stack([exact.sum(), mask.sum().double()]))
    mean = total / count.clamp(min=1)
    squares = sum_over_ranks(torch.where(mask, (exact - mean) ** 2, 0.0).sum())
    std = (squares / (count - ddof).clamp(min=1)).sqrt()
    std = torch.where(std > 8 * torch.finfo(x.dtype).eps * mean.abs(), std, 0.0)
    return mean.to(x.dtype), std.to(x.dtype)


def whiten(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    sum_over_ranks: Callable[[Tensor], Tensor],
    eps: float = 1e-8,
    ddof: int = 1,
) -> Float[Tensor, "*shape"]:
    """Shift and scale `x` to mean 0 and variance 1 over the masked entries of all ranks; 0 elsewhere.

    (x - mean) / sqrt(variance + eps). Entries that are all the same become exactly 0.
    """
    mean, std = mean_and_std(x, mask, ddof, sum_over_ranks)
    return torch.where(mask & (std > 0), (x - mean) * torch.rsqrt(std**2 + eps), 0.0)


def divide_by_std(
    x: Float[Tensor, "*shape"], std: Float[Tensor, "*#shape"], eps: float
) -> Float[Tensor, "*shape"]:
    """`x / (std + eps)`, and `x` itself where nothing varies: eps alone would blow it up."""
    return x / torch.where(std > 0, std + eps, 1.0)


def one_if_finite(*numbers: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1 if all numbers are finite, else NaN.

    A loss times this is the same to the last bit, or its whole gradient is NaN: so each rank sees in the norm
    of the gradient that some number of another rank is not finite.
    """
    return 1 + (0 * torch.stack([number.detach().float() for number in numbers])).sum()
