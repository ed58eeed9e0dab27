"""Partitions of rows of various lengths into batches."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Shaped
from torch import Tensor


def balanced_partition(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Cut rows into exactly `parts` non-empty lists, like lengths together, minimising the greatest cost.

    A list costs its padded tokens, rows * longest row. Rows are sorted by length and cut by bisection
    over the cost; greedy filling is optimal for a given bound. Needs `parts <= len(lengths)`.
    """
    assert 1 <= parts <= len(lengths), "a minibatch has at least one sequence for each micro-batch"
    low, high = max(lengths), max(lengths) * len(lengths)
    while low < high:
        middle = (low + high) // 2
        fits = len(batches_within(lengths, middle)) <= parts
        low, high = (low, middle) if fits else (middle + 1, high)
    lists = batches_within(lengths, low)
    while len(lists) < parts:  # splitting a list never raises the greatest cost
        longest = max(range(len(lists)), key=lambda i: len(lists[i]))
        rows = lists.pop(longest)
        lists += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return lists


def batches_within(lengths: Sequence[int], padded_tokens: int) -> list[list[int]]:
    """Cut rows into lists of at most `padded_tokens`, rows * longest row; the longest row first.

    Like lengths come together. A longer row is alone.
    """
    lists: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if lists and lengths[lists[-1][0]] * (len(lists[-1]) + 1) <= padded_tokens:
            lists[-1].append(row)
        else:
            lists.append([row])
    return lists


def even_parts(size: int, parts: int) -> list[range]:
    """Cut `range(size)` into parts whose sizes differ by at most 1."""
    cuts = [part * size // parts for part in range(parts + 1)]
    return [range(start, end) for start, end in pairwise(cuts)]


def rounds(size: int, ranks: int, *, at_once: int) -> int:
    """Rounds in which ranks that have every `ranks`-th of `size` items take about `at_once`, the same on all.

    No rank has an empty round, though the rounds of some may need one item more. Needs `ranks <= size`.
    """
    fewest, more = divmod(size, ranks)
    return min(-(-(fewest + bool(more)) // at_once), fewest)


def pad_rows(rows: Sequence[Shaped[Tensor, "_"]], width: int) -> Shaped[Tensor, "N T"]:
    """Stack one-dimensional tensors of various lengths, zeros filled in on the right up to `width`."""
    out = rows[0].new_zeros(len(rows), width)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out
