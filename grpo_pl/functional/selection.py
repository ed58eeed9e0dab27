"""The largest of numbers that are spread over ranks."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BITS, DIGIT = 32, 8
"""Of a float32, and those that one round of `largest` settles."""


def largest(
    values: Float[Tensor, "*shape"],
    among: Bool[Tensor, "*shape"],
    count: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> Bool[Tensor, "*shape"]:
    """True on the `count` greatest of the values `among` is True on, over all ranks together, in float32.

    All values equal to the least of them are taken too, so that it does not matter where a value stands; all
    where there are no more than `count`, none where `count` is 0. Collective. It finds the threshold exactly,
    by a radix select: four histograms of one digit each of a number's bits, which sort as numbers do once the
    sign bit is flipped, and the other bits of negative numbers too.
    """
    if count <= 0:
        return torch.zeros_like(among)
    bits = (values.float() + 0.0).view(torch.int32).long()  # + 0.0 makes 0 of -0
    keys = torch.where(bits < 0, ~bits, bits + 2 ** (BITS - 1))
    threshold, candidates = 0, among
    for shift in range(BITS - DIGIT, -1, -DIGIT):
        digits = (keys[candidates] >> shift) & (2**DIGIT - 1)
        histogram = sum_over_ranks(torch.bincount(digits, minlength=2**DIGIT))
        at_least = histogram.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= count).sum()) - 1
        if digit < 0:
            return among
        count -= int(at_least[digit] - histogram[digit])
        threshold += digit << shift
        candidates = among & (keys >> shift == threshold >> shift)
    return among & (keys >= threshold)
