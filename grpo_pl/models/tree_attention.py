"""Attention in a row that is a tree: each token sees the tokens that it follows, whoever else follows them.

Sequences that begin alike are branches of one tree. Their row has no padding, and no mask of all tokens by
all tokens: the attention of branches of about one length is one call of a kernel, which scores but these.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

TREE = "tree"
"""The name of this attention among transformers' implementations."""
STEPS = 8
"""Branches are padded to one of as many lengths between a power of two and the next: by an eighth at most."""
CLOSEST = 16
"""No two of these lengths are closer."""
FEW_KEYS = 512
"""On a CPU attention to fewer keys is computed in float32: its backward in bfloat16 takes thrice as long."""
OTHERS = "softcap", "s_aux", "position_bias", "head_mask", "sliding_window"
"""Arguments with which a model asks for another attention than this."""


class Branch(NamedTuple):
    """Tokens that stand side by side in the row, each behind the one before it."""

    path: Sequence[int]
    """Where in the row the tokens stand that the last of them sees: what they follow, and they themselves."""
    length: int
    """How many they are."""

    @property
    def is_causal(self) -> bool:
        """Whether what it follows is read with it once more: without a mask attention takes half the time."""
        return 2 * self.length > len(self.path)

    @property
    def shape(self) -> tuple[int, int]:
        """Its queries and its keys, padded."""
        keys = padded(len(self.path))
        return (keys if self.is_causal else padded(self.length)), keys


class Branches(NamedTuple):
    """G branches of one padded shape."""

    queries: Int[Tensor, "G Q"]
    """Where in the row their queries stand, and then padding."""
    keys: Int[Tensor, "G K"]
    visible: Bool[Tensor, "G 1 Q K"] | None
    """Which keys a query sees; None where it sees those up to itself."""

    @property
    def of_qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """The places of queries, keys and values."""
        return self.queries, self.keys, self.keys


class Tree:
    """How the N tokens of a row see each other.

    Args:
        branches: The tokens of the row in their order, each in one branch.
        device: Where the row is.
    """

    def __init__(self, branches: Sequence[Branch], device: torch.device) -> None:
        self.calls = 0
        """How many layers have read the row."""
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}
        self.batches: list[Branches] = []
        alike: dict[tuple[bool, tuple[int, int]], list[int]] = {}
        for b, branch in enumerate(branches):
            alike.setdefault((branch.is_causal, branch.shape), []).append(b)
        begins, before = [0] * len(branches), 0
        for (causal, (queries, keys)), some in alike.items():
            self.batches.append(batched([branches[b] for b in some], causal, queries, keys, device))
            for g, b in enumerate(some):
                behind = len(branches[b].path) - branches[b].length if causal else 0
                begins[b] = before + g * queries + behind
            before += len(some) * queries
        places = [range(n, n + branch.length) for n, branch in zip(begins, branches, strict=True)]
        self.places = torch.tensor([place for some in places for place in some], device=device)
        """Where each token of the row stands among the padded queries of all batches."""

    def attend(
        self,
        q: Float[Tensor, "N H D"],
        k: Float[Tensor, "N J D"],
        v: Float[Tensor, "N J E"],
        scale: float | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "N H E"]:
        """What the tokens see, by H query heads and J heads of keys and values, in the type of products."""
        self.calls += 1
        device, shared = q.device.type, q.shape[1] != k.shape[1]
        few = [in_float32(batch.keys.shape[1], device == "cpu") for batch in self.batches]
        kinds = [torch.float32 if of_few else dtype for of_few in few]
        given = {kind: (q.to(kind), k.to(kind), v.to(kind)) for kind in dict.fromkeys(kinds)}
        seen = []
        for kind, batch in zip(kinds, self.batches, strict=True):
            asked, offered, told = (at(x, p) for x, p in zip(given[kind], batch.of_qkv, strict=True))
            mask = self._mask(batch, kind)
            with torch.autocast(device, enabled=False):  # the types are chosen already
                found = scaled_dot_product_attention(
                    *(asked, offered, told, mask), is_causal=mask is None, scale=scale, enable_gqa=shared
                )
            seen.append(found.to(dtype).transpose(1, 2).flatten(0, 1))
        return torch.cat(seen).index_select(0, self.places)

    def _mask(self, batch: Branches, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores of a batch; one for all layers."""
        key = id(batch), dtype
        if key not in self._masks and batch.visible is not None:
            self._masks[key] = torch.zeros_like(batch.visible, dtype=dtype).masked_fill(
                ~batch.visible, -torch.inf
            )
        return self._masks.get(key)


def at(x: Float[Tensor, "N H D"], places: Int[Tensor, "G L"]) -> Float[Tensor, "G H L D"]:
    """The numbers of tokens by their places."""
    # index_select: unlike indexing, its backward adds up the gradients of a token in a fixed order
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:]).transpose(1, 2)


def in_float32(keys: int, on_cpu: bool) -> bool:
    """Whether attention to so many keys is computed in float32, whatever the type of products."""
    return on_cpu and keys < FEW_KEYS


def padded(length: int) -> int:
    """The length to which branches of this length are padded."""
    step = max(CLOSEST, 1 << max(length.bit_length() - 1, 0) // STEPS)
    return -(-length // step) * step


def batched(
    branches: Sequence[Branch], causal: bool, queries: int, keys: int, device: torch.device
) -> Branches:
    """Branches of one padded shape together."""
    paths = [torch.tensor(branch.path) for branch in branches]
    places = pad_sequence(paths, batch_first=True)
    places = nn.functional.pad(places, (0, keys - places.shape[1]))
    if causal:
        return Branches(places.to(device), places.to(device), None)
    own = [path[-branch.length :] for path, branch in zip(paths, branches, strict=True)]
    asked = pad_sequence(own, batch_first=True)
    asked = nn.functional.pad(asked, (0, queries - asked.shape[1]))
    first = torch.tensor([len(branch.path) - branch.length for branch in branches])
    visible = torch.arange(keys) <= (first[:, None] + torch.arange(queries))[..., None]
    return Branches(asked.to(device), places.to(device), visible[:, None].to(device))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def tree_attention(
    module: nn.Module,  # noqa: ARG001 - what transformers hands to all attention
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B J N D"],
    value: Float[Tensor, "B J N E"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: Tree | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "B N H E"], None]:
    """The attention of a layer in the form of transformers' attention functions.

    Without a tree, in rows of a sequence each, a token sees those up to itself; padding stands on the right.
    """
    strange = [name for name in OTHERS if others.get(name) is not None]
    if strange or dropout or attention_mask is not None:
        raise NotImplementedError(f"attention with {strange[0] if strange else 'a mask or dropout'}")
    if tree is None:
        shared = query.shape[1] != key.shape[1]
        seen = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=shared
        )
        return seen.transpose(1, 2), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    kind = q.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype
    return tree.attend(q, k, v, scaling, dtype)[None], None
