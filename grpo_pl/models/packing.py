"""Lays out sequences as a model reads them: in a row each, or as a tree, what they begin with but once."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.models.tree_attention import TREE, Branch, Tree
from grpo_pl.system.refusal import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


class Layout(NamedTuple):
    """A row of N tokens that holds B sequences: a tree, where a token stands once behind what it follows."""

    token_ids: Int[Tensor, "N"]
    positions: Int[Tensor, "N"]
    """The position of each token in its sequences."""
    home: Int[Tensor, "B T"]
    """Where in the row token t of sequence b stands; 0 for its last token and for padding."""
    tree: Tree


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


def pack(token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"]) -> Layout:
    """Lay sequences behind one another; what some of them begin with stands there once.

    Sequences are padded on the right, and end before their last masked token, whose state nobody reads; one
    without any is its first token.
    """
    lengths = [max(end - 1, 1) for end in sequence_ends(loss_mask)]
    sequences = [row[:length] for row, length in zip(token_ids.tolist(), lengths, strict=True)]
    tokens: list[int] = []
    positions: list[int] = []
    path: list[int] = []  # where the sequence laid last stands
    branches = []
    home = torch.zeros(token_ids.shape, dtype=torch.long)
    beginnings = Beginnings.of(sequences)
    for b, common in zip(beginnings.order, beginnings.common, strict=True):
        sequence, new = sequences[b], lengths[b] - common
        path = [*path[:common], *range(len(tokens), len(tokens) + new)]
        tokens += sequence[common:]
        positions += range(common, lengths[b])
        home[b, : lengths[b]] = torch.tensor(path)
        if new:
            branches.append(Branch(path, new))
    device = token_ids.device
    row = torch.tensor([tokens, positions], device=device)
    return Layout(row[0], row[1], home.to(device), Tree(branches, device))


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many tokens both sequences begin."""
    differ = (t for t, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def sequence_ends(loss_mask: Bool[Tensor, "B T"]) -> list[int]:
    """Where each sequence ends: behind its last masked token, or its first."""
    order = torch.arange(1, loss_mask.shape[1] + 1, device=loss_mask.device)
    return (loss_mask * order).amax(-1).clamp(min=1).tolist()


def hidden_before_each_token(
    trunk: "PreTrainedModel", token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"]
) -> States:
    """The state from which each masked token was chosen: the one shift of the project.

    In one row where the trunk's attention is that of a tree, else padded on the right, where causal attention
    needs no mask.
    """
    if trunk.config._attn_implementation != TREE:
        hidden = trunk(input_ids=token_ids, use_cache=False).last_hidden_state
        padding = 1 - sum(sequence_ends(loss_mask)) / loss_mask.numel()
        return States(hidden[:, :-1][loss_mask[:, 1:]], token_ids[loss_mask], None, padding)
    layout = pack(token_ids, loss_mask)
    row = {"input_ids": layout.token_ids[None], "position_ids": layout.positions[None]}
    hidden = trunk(**row, use_cache=False, tree=layout.tree).last_hidden_state[0]
    if not layout.tree.calls:
        raise ArgumentError(
            f"attention={TREE}: {type(trunk).__name__} hands no tree to its attention: set it to sdpa"
        )
    before, tokens = layout.home[:, :-1][loss_mask[:, 1:]], token_ids[loss_mask]
    different, which = torch.stack([before, tokens]).unique(dim=1, return_inverse=True)
    return States(hidden.index_select(0, different[0]), different[1], which, 0.0)


def obstacle_to_trees(language_model: "PreTrainedModel") -> str | None:
    """What in a model's configuration or code forbids the attention of a tree; None if nothing is seen."""
    config: Any = language_model.config.get_text_config()
    if not language_model._can_set_attn_implementation():
        return "its attention cannot be exchanged"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if kinds != {"full_attention"} or windowed:
        return "it has layers that do not attend to the whole sequence"
    return None
