"""Rows of various lengths, put together."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Shaped
from torch import Tensor


def balanced_partition(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Cut rows into exactly `parts` non-empty lists, like lengths together, the dearest as cheap as can be.

    A list costs its padded tokens, rows * longest row. Rows are sorted by length and cut at the places that
    minimise the greatest cost (bisection over the cost; greedy filling is optimal for a given bound). Needs
    `parts <= len(lengths)`.
    """
    assert 1 <= parts <= len(lengths), "a minibatch has at least one sequence for each micro-batch"
    low, high = max(lengths), max(lengths) * len(lengths)
    while low < high:
        middle = (low + high) // 2
        fits = len(batches_within(lengths, middle)) <= parts
        low, high = (low, middle) if fits else (middle + 1, high)
    lists = batches_within(lengths, low)
    while len(lists) < parts:  # splitting a list never makes any list dearer
        longest = max(range(len(lists)), key=lambda i: len(lists[i]))
        rows = lists.pop(longest)
        lists += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return lists


def batches_within(lengths: Sequence[int], padded_tokens: int) -> list[list[int]]:
    """Cut rows into lists of at most so many padded tokens each, rows * longest row; the longest row first.

    Like lengths come together. A row that is longer than that is alone.
    """
    lists: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if lists and lengths[lists[-1][0]] * (len(lists[-1]) + 1) <= padded_tokens:
            lists[-1].append(row)
        else:
            lists.append([row])
    return lists


def even_parts(size: int, parts: int) -> list[range]:
    """Cut `range(size)` into parts of which none has two more than another."""
    cuts = [part * size // parts for part in range(parts + 1)]
    return [range(start, end) for start, end in pairwise(cuts)]


def rounds(size: int, ranks: int, *, at_once: int) -> int:
    """How often ranks that have every `ranks`-th of `size` things take up to `at_once`: each as often.

    None then has an empty part, even if the parts of some must have one more. Needs `ranks <= size`.
    """
    fewest, more = divmod(size, ranks)
    return min(-(-(fewest + bool(more)) // at_once), fewest)


def pad_rows(rows: Sequence[Shaped[Tensor, "_"]], width: int) -> Shaped[Tensor, "N T"]:
    """Stack one-dimensional tensors of various lengths, zeros filled in on the right up to `width`."""
    out = rows[0].new_zeros(len(rows), width)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out
