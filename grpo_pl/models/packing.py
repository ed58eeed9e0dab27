"""Lays out sequences in the rows that a model reads: padded, or packed with shared prompts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.system.refusal import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH_STEP = 32
"""Row lengths are multiples of this: with fewer shapes, kernels and freed memory are reused."""

_SHARED = -1
"""The owner of padding, and of prompt tokens, which all sequences of the row with this prompt see."""


class Span(NamedTuple):
    """The prompt and the lengths of a sequence."""

    prompt: int
    """Equal for sequences with the same prompt."""
    prompt_tokens: int
    response_tokens: int


class Slot(NamedTuple):
    """The place of a sequence."""

    row: int
    prompt: int
    """Where in the row its prompt begins, which others may share."""
    response: int
    """Where in the row its response begins."""


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
    """R rows of S tokens that hold B sequences."""

    token_ids: Int[Tensor, "R S"]
    positions: Int[Tensor, "R S"]
    """The position of each token in its sequence."""
    visible: Bool[Tensor, "R 1 S S"]
    """`[r, 0, i, j]`: whether token i sees token j: its prompt and earlier tokens of its sequence. Padding
    sees itself, so that its softmax exists."""
    home: Int[Tensor, "B T"]
    """The index of token t of sequence b through all rows; 0 for padding."""
    padding: float
    """The share of the R * S positions that hold no token."""


class States(NamedTuple):
    """The states that a trunk computes for sequences."""

    hidden: Float[Tensor, "M H"]
    """The state from which each of the M masked tokens was chosen."""
    padding: float
    """The share of the positions computed that hold no token."""


def pack(token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"], row_tokens: int) -> Layout:
    """Lay sequences side by side, those with the same prompt in one row behind one copy of it.

    Sequences are padded on the right; a prompt is the tokens before the first response token. Rows have at
    most `row_tokens`; a longer sequence has a row of its own length.
    """
    ids, device = token_ids.cpu(), token_ids.device
    ends = [_ends(mask) for mask in loss_mask.tolist()]
    begins_with = [tuple(row[:start]) for row, (start, _) in zip(ids.tolist(), ends, strict=True)]
    known = {prompt: i for i, prompt in enumerate(sorted(set(begins_with)))}
    spans = [Span(known[it], start, end - start) for it, (start, end) in zip(begins_with, ends, strict=True)]
    placement = narrowest(spans, row_tokens)
    width = placement.width
    tokens, positions = torch.zeros((2, len(placement.used), width), dtype=torch.long)
    prompts, owners = torch.full((2, len(placement.used), width), _SHARED)
    home = torch.zeros(token_ids.shape, dtype=torch.long)
    for b, ((row, prompt, response), (start, end)) in enumerate(zip(placement.places, ends, strict=True)):
        for begin, first, last, owner in ((prompt, 0, start, _SHARED), (response, start, end, b)):
            span = slice(begin, begin + last - first)
            tokens[row, span], positions[row, span] = ids[b, first:last], torch.arange(first, last)
            prompts[row, span], owners[row, span] = prompt, owner
            home[b, first:last] = row * width + torch.arange(span.start, span.stop)
    return Layout(
        tokens.to(device),
        positions.to(device),
        _visible(prompts.to(device), owners.to(device)),
        home.to(device),
        1 - sum(placement.used) / tokens.numel(),
    )


def narrowest(spans: Sequence[Span], row_tokens: int) -> Placement:
    """First fit into rows of at most `row_tokens`, as narrow as possible without more rows."""
    longest = max(span.prompt_tokens + span.response_tokens for span in spans)
    best = first_fit(spans, max(row_tokens, longest))
    low, high = -(-longest // WIDTH_STEP), best.width // WIDTH_STEP
    while low < high:
        middle = (low + high) // 2
        tried = first_fit(spans, middle * WIDTH_STEP)
        if len(tried.used) > len(best.used):
            low = middle + 1
        else:
            best, high = tried, middle
    return best


def first_fit(spans: Sequence[Span], capacity: int) -> Placement:
    """Lay each sequence into the first row with its prompt and room, else the first with room for both.

    Otherwise it opens a row. Responses to a prompt come together, longest first.
    """
    used: list[int] = []
    begins: list[dict[int, int]] = []  # of each row: where the prompts in it begin
    places = [Slot(0, 0, 0)] * len(spans)
    for b in sorted(range(len(spans)), key=lambda b: (spans[b].prompt, -spans[b].response_tokens, b)):
        prompt, prompt_tokens, response_tokens = spans[b]
        room = [capacity - tokens for tokens in used]
        homes = [r for r in range(len(used)) if prompt in begins[r] and room[r] >= response_tokens]
        homes += [
            r
            for r in range(len(used))
            if prompt not in begins[r] and room[r] >= prompt_tokens + response_tokens
        ]
        if not homes:
            used.append(0)
            begins.append({})
            homes = [len(used) - 1]
        row = homes[0]
        if prompt not in begins[row]:
            begins[row][prompt] = used[row]
            used[row] += prompt_tokens
        places[b] = Slot(row, begins[row][prompt], used[row])
        used[row] += response_tokens
    return Placement(places, used)


def _ends(mask: Sequence[bool]) -> tuple[int, int]:
    """Where the response begins and ends; a row without a response is its first token."""
    chosen = [t for t, it in enumerate(mask) if it]
    return (chosen[0], chosen[-1] + 1) if chosen else (0, 1)


def _visible(prompts: Int[Tensor, "R S"], owners: Int[Tensor, "R S"]) -> Bool[Tensor, "R 1 S S"]:
    width = prompts.shape[1]
    order = torch.arange(width, device=prompts.device)
    same_prompt = (prompts[:, :, None] == prompts[:, None]) & (prompts[:, :, None] >= 0)
    before = same_prompt & (order[:, None] >= order)
    related = (owners[:, None] == _SHARED) | (owners[:, :, None] == owners[:, None])
    return (before & related | torch.eye(width, dtype=torch.bool, device=prompts.device))[:, None]


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
        ends = (loss_mask * torch.arange(1, loss_mask.shape[1] + 1, device=loss_mask.device)).amax(-1)
        padding = 1 - float(ends.sum()) / loss_mask.numel()
        return States(hidden[:, :-1][loss_mask[:, 1:]], padding)
    layout = pack(token_ids, loss_mask, row_tokens)
    mask: Tensor = layout.visible
    if trunk.config._attn_implementation == "eager":  # it adds the mask
        lowest = torch.finfo(torch.float32).min
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)
    hidden = trunk(
        input_ids=layout.token_ids, position_ids=layout.positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    # index_select: unlike indexing, its backward adds up the gradients of a shared state in a fixed order
    chosen = hidden.flatten(0, 1).index_select(0, layout.home[:, :-1][loss_mask[:, 1:]])
    return States(chosen, layout.padding)


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
