"""How sequences lie in the rows that a model reads: padded, or packed with their prompts shared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTH_STEP = 32
"""Rows are a multiple of this long: with fewer shapes, kernels and freed memory are used again."""

_SHARED = -1
"""The owner of a prompt's tokens, which all sequences of the row that begin with it see."""


class Row(NamedTuple):
    """One row under construction."""

    tokens: list[int]
    positions: list[int]
    prompts: list[int]
    """Of each token, where in the row its prompt begins."""
    owners: list[int]
    """Of each token, the sequence that it belongs to, `_SHARED` in a prompt."""


class Layout(NamedTuple):
    """R rows of S tokens that hold B sequences."""

    token_ids: Int[Tensor, "R S"]
    positions: Int[Tensor, "R S"]
    """Of each token, its place in its sequence."""
    visible: Bool[Tensor, "R 1 S S"]
    """`[r, 0, i, j]`: whether token i sees token j: its prompt and what its own sequence said before.
    Padding sees itself, so that its softmax exists."""
    home: Int[Tensor, "B T"]
    """Where token t of sequence b stands, counted through all rows; 0 for padding."""
    padding: float
    """The share of the R * S positions that hold no token."""


class States(NamedTuple):
    """What a trunk makes of sequences."""

    hidden: Float[Tensor, "M H"]
    """The state from which each of the M masked tokens was chosen."""
    padding: float
    """The share of the positions computed that hold no token."""


def pack(token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"], row_tokens: int) -> Layout:
    """Lay sequences side by side, those that begin with the same prompt in one row behind one copy of it.

    First fit: a response goes to the first row that has its prompt and room, else to the first with room for
    both, else it opens a row. Responses of a prompt come together, longest first.

    Args:
        token_ids: The sequences, padded on the right.
        loss_mask: True on response tokens; a sequence's prompt is what stands before the first one.
        row_tokens: Length of a row in tokens; a longer sequence has one of its own length.
    """
    spans = [_span(mask) for mask in loss_mask.tolist()]
    sequences = token_ids.tolist()
    prompts = [tuple(ids[:start]) for ids, (start, _) in zip(sequences, spans, strict=True)]
    capacity = max(row_tokens, *(end for _, end in spans))
    rows: list[Row] = []
    begins: list[dict[tuple[int, ...], int]] = []  # of each row: where the prompts in it begin
    places: list[tuple[int, int, int]] = [(0, 0, 0)] * len(spans)  # row, begin of prompt, begin of response
    for b in sorted(range(len(spans)), key=lambda b: (prompts[b], spans[b][0] - spans[b][1], b)):
        prompt, (start, end) = prompts[b], spans[b]
        room = [capacity - len(row.tokens) for row in rows]
        homes = [r for r in range(len(rows)) if prompt in begins[r] and room[r] >= end - start]
        homes += [r for r in range(len(rows)) if prompt not in begins[r] and room[r] >= end]
        if not homes:
            rows.append(Row([], [], [], []))
            begins.append({})
            homes = [len(rows) - 1]
        row, known = rows[homes[0]], begins[homes[0]]
        if prompt not in known:
            known[prompt] = len(row.tokens)
            _append(row, prompt, 0, known[prompt], _SHARED)
        places[b] = (homes[0], known[prompt], len(row.tokens))
        _append(row, sequences[b][start:end], start, known[prompt], b)
    width = -(-max(len(row.tokens) for row in rows) // WIDTH_STEP) * WIDTH_STEP
    home = torch.zeros(token_ids.shape, dtype=torch.long)
    for b, (r, prompt_begin, begin) in enumerate(places):
        start, end = spans[b]
        home[b, :start] = r * width + prompt_begin + torch.arange(start)
        home[b, start:end] = r * width + begin + torch.arange(end - start)
    device = token_ids.device
    return Layout(
        _padded([row.tokens for row in rows], width, 0).to(device),
        _padded([row.positions for row in rows], width, 0).to(device),
        _visible(
            _padded([row.prompts for row in rows], width, -1).to(device),
            _padded([row.owners for row in rows], width, _SHARED).to(device),
        ),
        home.to(device),
        1 - sum(len(row.tokens) for row in rows) / (len(rows) * width),
    )


def _span(mask: Sequence[bool]) -> tuple[int, int]:
    """Where the response begins, and where it ends; a row without one is its first token."""
    chosen = [t for t, it in enumerate(mask) if it]
    return (chosen[0], chosen[-1] + 1) if chosen else (0, 1)


def _append(row: Row, tokens: Sequence[int], position: int, prompt: int, owner: int) -> None:
    row.tokens.extend(tokens)
    row.positions.extend(range(position, position + len(tokens)))
    row.prompts.extend([prompt] * len(tokens))
    row.owners.extend([owner] * len(tokens))


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> Int[Tensor, "R S"]:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


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
    """The option as it is, if it is one.

    Raises:
        ValueError: If it is a number below 1.
    """
    if row_tokens is not None and row_tokens < 1:
        raise ValueError(f"row_tokens={row_tokens}: expected 1 or more, or null")
    return row_tokens


def check_can_pack(language_model: "PreTrainedModel", row_tokens: int | None) -> None:
    """Refuse models whose layers would not follow the mask of packed rows.

    Raises:
        ValueError: If some layer does not attend to the whole sequence, or by a kernel that takes no mask.
    """
    if row_tokens is None:
        return
    config: Any = language_model.config.get_text_config()
    attention = language_model.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise ValueError(
            f"row_tokens={row_tokens} needs attention that takes a mask, got {attention}: set attention to "
            "sdpa, or row_tokens to null"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if kinds != {"full_attention"} or windowed:
        raise ValueError(
            f"row_tokens={row_tokens} needs layers that attend to the whole sequence, and this model has "
            "others: set row_tokens to null"
        )
