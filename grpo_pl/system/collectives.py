"""Communication among the ranks of a run; a single process is rank 0 of 1."""

import os
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def in_group() -> bool:
    """Whether this process is one of several ranks."""
    return distributed.is_available() and distributed.is_initialized()


def rank_and_size() -> tuple[int, int]:
    """This rank, and the number of ranks."""
    return (distributed.get_rank(), distributed.get_world_size()) if in_group() else (0, 1)


def is_first_rank() -> bool:
    """Whether this is rank 0."""
    return rank_and_size()[0] == 0


def launched_ranks() -> int:
    """Processes of the run, by its launcher's environment: known before they form a group."""
    return max(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def first_rank_says(value: T) -> T:
    """The value of rank 0. Collective."""
    box = [value]
    if in_group():
        distributed.broadcast_object_list(box)
    return box[0]


def each_rank_says(value: T) -> list[T]:
    """The value of every rank, in their order. Collective."""
    values = [value] * rank_and_size()[1]
    if in_group():
        distributed.all_gather_object(values, value)
    return values


def agreed(wrong: str) -> str:
    """The complaint of the lowest rank that has one, the same on all ranks. Collective."""
    return next(filter(None, each_rank_says(wrong)), "")


def most_on_any_rank(number: int, device: torch.device) -> int:
    """The largest number on any rank. Collective."""
    most = torch.tensor(number, device=device)
    if in_group():
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return int(most)
