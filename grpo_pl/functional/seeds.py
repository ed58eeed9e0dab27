"""Randomness as a counter."""

import hashlib

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
