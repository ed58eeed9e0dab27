"""Lays out sequences in the rows that a model reads: padded, or packed, what they begin with but once."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.system.refusal import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH_STEP = 32
"""Row lengths are multiples of this: with fewer shapes, kernels and freed memory are reused."""


class Beginnings(NamedTuple):
    """What sequences have in common: in lexicographic order, those that begin alike stand side by side."""

    order: Sequence[int]
    """The sequences in that order."""
    lengths: Sequence[int]
    """The tokens of each sequence."""
    common: Sequence[int]
    """By place in the order: with how many tokens a sequence begins as the one before it does."""

    @classmethod
    def of(cls, sequences: Sequence[list[int]]) -> "Beginnings":
        """Those of sequences of tokens."""
        order = sorted(range(len(sequences)), key=lambda b: sequences[b])
        common = [common_tokens(sequences[a], sequences[b]) for a, b in pairwise(order)]
        return cls(order, [len(tokens) for tokens in sequences], [0, *common])


class Slot(NamedTuple):
    """The place of a sequence."""

    row: int
    shared: int
    """How many of its first tokens stand in the row already: those of the sequence laid there before it."""
    begin: int
    """Where in the row its other tokens begin."""


class Placement(NamedTuple):
    """The places of sequences in rows."""

    places: list[Slot]
    used: list[int]
    """The tokens in each row."""

    @property
    def width(self) -> int:
        """The padded length of all rows."""
        return -(-max(self.used) // WIDTH_STEP) * WIDTH_STEP


class Layout(NamedTuple):
    """R rows of S tokens that hold B sequences: each row a tree, a token behind the one that it follows."""

    token_ids: Int[Tensor, "R S"]
    positions: Int[Tensor, "R S"]
    """The position of each token in its sequences."""
    ends: Int[Tensor, "R S"]
    """Where in the row the tokens end that follow each token, at once or later."""
    home: Int[Tensor, "B T"]
    """The index of token t of sequence b through all rows; 0 for its last token and for padding."""
    padding: float
    """The share of the R * S positions that hold no token."""

    @property
    def visible(self) -> Bool[Tensor, "R 1 S S"]:
        """`[r, 0, i, j]`: whether token i sees token j: itself and what it follows.

        Padding sees itself, so that its softmax exists.
        """
        order = torch.arange(self.ends.shape[1], device=self.ends.device)
        return ((order[:, None] >= order) & (order[:, None] < self.ends[:, None]))[:, None]


class States(NamedTuple):
    """The states that a trunk computes for sequences."""

    hidden: Float[Tensor, "U H"]
    """The state from which each masked token was chosen, that of a shared token once."""
    tokens: Int[Tensor, "U"]
    """The token that was chosen from each."""
    which: Int[Tensor, "M"] | None
    """Which of them is that of each of the M masked tokens; None where all have their own, in their order."""
    padding: float
    """The share of the positions computed that hold no token."""

    def of_each(self, x: Float[Tensor, "U *K"]) -> Float[Tensor, "M *K"]:
        """Values of the states as values of all masked tokens."""
        # index_select: unlike indexing, its backward adds up the gradients of a shared value in a fixed order
        return x if self.which is None else x.index_select(0, self.which)


def pack(token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"], row_tokens: int) -> Layout:
    """Lay sequences side by side; what sequences of a row begin with stands there once, whoever shares it.

    Sequences are padded on the right, and end before their last masked token, whose state nobody reads; one
    without any is its first token. Rows have at most `row_tokens`; a longer sequence has a row of its own
    length.
    """
    device = token_ids.device
    lengths = [max(end - 1, 1) for end in sequence_ends(loss_mask)]
    sequences = [row[:length] for row, length in zip(token_ids.tolist(), lengths, strict=True)]
    beginnings = Beginnings.of(sequences)
    placement = narrowest(beginnings, row_tokens)
    width = placement.width
    tokens, positions = torch.zeros((2, len(placement.used), width), dtype=torch.long)
    ends = torch.arange(1, width + 1).repeat(len(placement.used), 1)
    home = torch.zeros(token_ids.shape, dtype=torch.long)
    paths: list[list[int]] = [[] for _ in placement.used]  # of each row: where the sequence laid last stands
    for b in beginnings.order:
        (row, shared, begin), sequence = placement.places[b], torch.tensor(sequences[b])
        new = slice(begin, begin + len(sequence) - shared)
        tokens[row, new], positions[row, new] = sequence[shared:], torch.arange(shared, len(sequence))
        ends[row, paths[row][shared:]] = begin
        paths[row] = [*paths[row][:shared], *range(new.start, new.stop)]
        home[b, : len(sequence)] = row * width + torch.tensor(paths[row])
    for of_row, path, used in zip(ends, paths, placement.used, strict=True):
        of_row[path] = used
    padding = 1 - sum(placement.used) / tokens.numel()
    return Layout(tokens.to(device), positions.to(device), ends.to(device), home.to(device), padding)


def narrowest(beginnings: Beginnings, row_tokens: int) -> Placement:
    """Rows of at most `row_tokens`, as narrow as possible without more rows."""
    longest = max(beginnings.lengths)
    best = best_fit(beginnings, max(row_tokens, longest))
    low, high = -(-longest // WIDTH_STEP), best.width // WIDTH_STEP
    while low < high:
        middle = (low + high) // 2
        tried = best_fit(beginnings, middle * WIDTH_STEP)
        if len(tried.used) > len(best.used):
            low = middle + 1
        else:
            best, high = tried, middle
    return best


def best_fit(beginnings: Beginnings, capacity: int) -> Placement:
    """Lay each sequence, in their order, into the row with room that holds most of its beginning.

    Of equal rows it takes the first, without any it opens one.
    """
    used: list[int] = []
    shared: list[int] = []  # of each row: the tokens that the next sequence would find there
    places = [Slot(0, 0, 0)] * len(beginnings.order)
    for b, common in zip(beginnings.order, beginnings.common, strict=True):
        length = beginnings.lengths[b]
        shared = [min(tokens, common) for tokens in shared]
        with_room = [r for r in range(len(used)) if used[r] + length - shared[r] <= capacity]
        if not with_room:
            used.append(0)
            shared.append(0)
            with_room = [len(used) - 1]
        row = max(with_room, key=lambda r: shared[r])
        places[b] = Slot(row, shared[row], used[row])
        used[row] += length - shared[row]
        shared[row] = length
    return Placement(places, used)


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many tokens both sequences begin."""
    differ = (t for t, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def sequence_ends(loss_mask: Bool[Tensor, "B T"]) -> list[int]:
    """Where each sequence ends: behind its last masked token, or its first."""
    order = torch.arange(1, loss_mask.shape[1] + 1, device=loss_mask.device)
    return (loss_mask * order).amax(-1).clamp(min=1).tolist()


def hidden_before_each_token(
    trunk: "PreTrainedModel",
    token_ids: Int[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    row_tokens: int | None,
) -> States:
    """The state from which each masked token was chosen: the one shift of the project.

    Padded on the right, where causal attention needs no mask; packed where `row_tokens` is a number.
    """
    if row_tokens is None:
        hidden = trunk(input_ids=token_ids, use_cache=False).last_hidden_state
        padding = 1 - sum(sequence_ends(loss_mask)) / loss_mask.numel()
        return States(hidden[:, :-1][loss_mask[:, 1:]], token_ids[loss_mask], None, padding)
    layout = pack(token_ids, loss_mask, row_tokens)
    mask: Tensor = layout.visible
    if trunk.config._attn_implementation == "eager":  # it adds the mask
        lowest = torch.finfo(torch.float32).min
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)
    hidden = trunk(
        input_ids=layout.token_ids, position_ids=layout.positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    before, tokens = layout.home[:, :-1][loss_mask[:, 1:]], token_ids[loss_mask]
    different, which = torch.stack([before, tokens]).unique(dim=1, return_inverse=True)
    states = hidden.flatten(0, 1).index_select(0, different[0])
    return States(states, different[1], which, layout.padding)


def checked_row_tokens(row_tokens: int | None) -> int | None:
    """The option, if it is 1 or more, or None."""
    if row_tokens is not None and row_tokens < 1:
        raise ArgumentError(f"row_tokens={row_tokens}: expected 1 or more, or null")
    return row_tokens


def check_can_pack(language_model: "PreTrainedModel", row_tokens: int | None) -> None:
    """Refuse layers that attend to part of a sequence or take no mask: rows could not be packed."""
    if row_tokens is None:
        return
    config: Any = language_model.config.get_text_config()
    attention = language_model.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise ArgumentError(
            f"row_tokens={row_tokens} needs attention that takes a mask, got {attention}: set attention to "
            "sdpa, or row_tokens to null"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    windowed = windowed or "local" in getattr(config, "attention_layers", ())  # GPT-Neo
    if kinds != {"full_attention"} or windowed:
        raise ArgumentError(
            f"row_tokens={row_tokens} needs layers that attend to the whole sequence, and this model has "
            "others: set row_tokens to null"
        )
