"""Bytes and rows as pure functions of plain numbers; each term is explained where it stands."""

from dataclasses import dataclass
from typing import NamedTuple

from grpo_pl.models.architecture import Architecture
from grpo_pl.models.logprobs import FLOAT_ROWS
from grpo_pl.models.tree_attention import TREE, Branch, in_float32

FLOAT32 = 4
LOGITS_COPIES = 2
"""Float32 copies of `FLOAT_ROWS` rows of logits that exist at once in `LinearLogprobs`."""
LOGITS_COPIES_WITH_ENTROPY = 3
"""With an entropy bonus also the probabilities."""
DENSE_COPIES = 5
"""Float32 copies of a chunk of logits at the peak of `taught_logprobs` with one of the two KLs, measured."""
DENSE_COPIES_OF_JSD = 9
"""The same with the generalised Jensen-Shannon divergence."""


class Rows(NamedTuple):
    """The shape that a model reads: a number of rows of equally many tokens."""

    number: int
    tokens: int
    queries: int = 0
    """In a row that is a tree: the queries of all branches, padded."""
    keys: int = 0
    """Their keys, likewise."""
    keys_each: int = 0
    """The keys of one branch."""

    @property
    def positions(self) -> int:
        """The tokens of all rows."""
        return self.number * self.tokens


@dataclass(frozen=True)
class Network:
    """How a model with layers of its own computes."""

    architecture: Architecture
    linear_parameters: int
    """Weights of its linear layers, a tied LM head among them: what autocast copies."""
    weight_bytes: int
    """Bytes of an element of its weights, and so of the states between its layers."""
    compute_bytes: int
    """Bytes of an element in its matrix products."""
    attention: str
    """The attention's name: "eager" holds its scores, kernels such as sdpa forget them."""
    checkpointing: bool = False
    chunk_tokens: int = 0
    """Rows of logits at once; 0 for a model without LM head."""
    head_in_float32: bool = False
    on_cpu: bool = True

    @property
    def logit_bytes(self) -> int:
        """Bytes of an element in the LM head's product."""
        return FLOAT32 if self.head_in_float32 else self.compute_bytes


def tree_of(groups: int, group_size: int, prompt: int, response: int) -> Rows:
    """The row of groups of responses of equal length that have nothing but their prompt in common."""
    whole = range(prompt + response - 1)  # the state of the last token is not read
    first, others = Branch(whole, len(whole)).shape, Branch(whole, response - 1).shape
    queries, keys = (groups * (a + (group_size - 1) * b) for a, b in zip(first, others, strict=True))
    return Rows(1, groups * (prompt + group_size * (response - 1)), queries, keys, first[1])


def layer_bytes(network: Network, rows: Rows) -> int:
    """Bytes that one layer keeps from its forward for its backward.

    Of each token, with H states, q query states and I inner ones, w bytes a weight and c in products:
    2 norms keep their input and its scale in float32 and the normalised states, 2 (4 H + 4 + w H); 5 linear
    layers keep their input, as copies in c bytes where autocast makes them, 5 c H, else shared by q, k, v and
    by gate and up, 2 c H; the gated layer keeps gate, its activation, up and their product, 4 c I; the
    output projection keeps its input, c q. Eager attention keeps q and the repeated k and v, 3 c q, and
    the scores of all heads against a row of S tokens, in float32 and, where that differs, in c bytes. A
    kernel keeps q and k and v, and 4 bytes a head; in a tree those of the padded branches, and what it gives
    for them, on a CPU in float32 where keys are few.
    """
    a, w, c = network.architecture, network.weight_bytes, network.compute_bytes
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    norms = 2 * (FLOAT32 * a.hidden + FLOAT32 + w * a.hidden)
    inputs = (2 if c == w else 5) * c * a.hidden + c * q
    inner = 4 * c * a.intermediate
    kept = rows.positions * (norms + inputs + inner)
    if network.attention == TREE:
        c = FLOAT32 if in_float32(rows.keys_each, network.on_cpu) else c
        return kept + rows.queries * (2 * c * q + FLOAT32 * a.heads) + rows.keys * 2 * c * kv
    if network.attention == "eager":
        scores = a.heads * rows.tokens * (FLOAT32 + (c if c != FLOAT32 else 0))
        return kept + rows.positions * (3 * c * q + scores)
    return kept + rows.positions * (c * q + 2 * c * kv + FLOAT32 * a.heads)


def cast_bytes(network: Network) -> int:
    """Autocast's copies of the weights of linear layers, which live until the backward has used them."""
    different = network.compute_bytes != network.weight_bytes
    return network.linear_parameters * network.compute_bytes if different else 0


def head_bytes(network: Network, with_entropy: bool) -> int:
    """Bytes for the backward of a chunk of logits: the chunk, copies of a few rows, and the head's gradient.

    That gradient is what the chunk adds, in the precision of products, and the sum in float32.
    """
    copies = LOGITS_COPIES_WITH_ENTROPY if with_entropy else LOGITS_COPIES
    gradient = network.logit_bytes + FLOAT32 if network.chunk_tokens else 0
    of_head = gradient * network.architecture.hidden * network.architecture.vocabulary
    return chunk_bytes(network, copies) + of_head


def chunk_bytes(network: Network, copies: int) -> int:
    """A chunk of logits in the precision of products, and float32 copies of a few of its rows."""
    in_float = copies * FLOAT32 * min(FLOAT_ROWS, network.chunk_tokens)
    return network.architecture.vocabulary * (network.logit_bytes * network.chunk_tokens + in_float)


def activation_bytes(network: Network, rows: Rows) -> int:
    """Bytes that the trunk keeps between forward and backward, and one layer's backward beside it.

    With gradient checkpointing, of each layer its input alone; the layer under way is computed again.
    """
    layer, a = layer_bytes(network, rows), network.architecture
    if network.checkpointing:
        return a.layers * rows.positions * a.hidden * network.weight_bytes + 2 * layer
    return (a.layers + 1) * layer


def forward_bytes(network: Network, rows: Rows, with_head: bool) -> int:
    """Bytes for a pass without gradient: one layer, and a chunk of logits with its entropy."""
    return layer_bytes(network, rows) + (chunk_bytes(network, LOGITS_COPIES) if with_head else 0)
