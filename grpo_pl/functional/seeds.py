"""Randomness as a counter."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate

import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part: randomness as a counter, not as a state.

    Everything random in iteration i draws from `derive_seed(run_seed, what, i, ...)`, so resuming needs no
    saved state.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(size: int, seed: int) -> list[int]:
    """A uniformly random order of `range(size)`, the same for the same seed on every machine."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def ratio_sample(sizes: Sequence[int], count: int, seed: int) -> list[int]:
    """At most `count` of the units of a size above 0, for the mean over all parts of all units.

    For any totals x of the units, (sum of x) / (sum of sizes) over the sample has the ratio over all units as
    its expectation, exactly: the sample is drawn with a probability proportional to the sum of its sizes
    (Midzuno 1952, "On the sampling system with probability proportionate to sum of sizes"). Under a uniform
    sample this ratio is biased where sizes differ.
    """
    part = derive_seed(seed, "ratio_sample", "part") % max(sum(sizes), 1)
    units = sum(size > 0 for size in sizes)
    order = permutation(max(units - 1, 0), derive_seed(seed, "ratio_sample", "order"))
    return drawn_by_size(sizes, count, part, order)


def drawn_by_size(sizes: Sequence[int], count: int, part: int, order: Sequence[int]) -> list[int]:
    """The unit that holds this part of all sum(sizes), then the first of the others in the given order."""
    units = [unit for unit, size in enumerate(sizes) if size > 0]
    if count < 1 or not units:
        return []
    ends = accumulate(sizes[unit] for unit in units)
    first = next(unit for unit, end in zip(units, ends, strict=True) if part < end)
    others = [unit for unit in units if unit != first]
    return sorted([first, *(others[place] for place in order[: count - 1])])
