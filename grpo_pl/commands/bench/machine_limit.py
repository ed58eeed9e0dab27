"""The machine's limit: what an iteration takes if there are but its products and its memory traffic."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from grpo_pl.models.architecture import Architecture
from grpo_pl.models.packing import Beginnings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPES = (512, 2048, 2048), (1024, 4096, 1024), (2048, 2048, 2048)
"""Products `[m, k] x [k, n]` of good shape; the fastest counts."""
REPEATS = 5
READ_BYTES = 512 * 2**20
"""The memory that is read to measure how fast it is: beyond any cache."""
PASSES = 3
"""The products of a forward and its backward, in products of the forward."""


class Machine(NamedTuple):
    """What a machine can do, measured at the moment."""

    flops: float
    """Floating-point operations a second in bare products."""
    bandwidth: float
    """Bytes a second that are read."""

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> "Machine":
        """The best of a few products and of a few passes over memory, with all threads: half a second."""
        rates = []
        for m, k, n in SHAPES:
            states, weights = (torch.ones(rows, k, dtype=dtype, device=device) for rows in (m, n))
            product = partial(nn.functional.linear, states, weights)
            rates.append(2 * m * k * n / best_seconds(product, device))
        memory = torch.ones(READ_BYTES // 4, device=device)
        return cls(max(rates), READ_BYTES / best_seconds(memory.sum, device))


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest time of several calls: other work on the machine slows single ones."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


class Read(NamedTuple):
    """Tokens that a model must read."""

    tokens: int
    """Those that differ, or stand behind others that do: what sequences begin with counts once, and the last
    token of each not at all, for nobody asks for its state."""
    pairs: int
    """Pairs of such a token and one that it attends to."""
    scored: int
    """Tokens whose log-probability is asked for, each once."""

    @classmethod
    def of(cls, sequences: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> "Read":
        """The tokens of sequences, each with the mask of its scored ones."""
        tokens, masks = zip(*((list(tokens), mask) for tokens, mask in sequences), strict=True)
        read, whole = Beginnings.of([row[:-1] for row in tokens]), Beginnings.of(tokens)
        new = [range(c + 1, read.lengths[b] + 1) for b, c in zip(read.order, read.common, strict=True)]
        scored = sum(sum(masks[b][c:]) for b, c in zip(whole.order, whole.common, strict=True))
        return cls(sum(map(len, new)), sum(map(sum, new)), scored)


class Network(NamedTuple):
    """What a model's products depend on."""

    trunk: int
    """Weights of the products in its trunk; of a mixture of experts those of all."""
    head: int
    """Weights of its LM head."""
    attention: int
    """Width of the queries of all layers."""

    @classmethod
    def of(cls, language_model: "PreTrainedModel") -> "Network":
        """The sizes of a model."""
        a = Architecture.of(language_model)
        embedding = language_model.get_input_embeddings().weight
        head = language_model.get_output_embeddings().weight
        matrices = {id(p): p.numel() for p in language_model.parameters() if p.ndim >= 2}
        trunk = sum(matrices.values()) - sum(matrices.pop(id(w), 0) for w in (embedding, head))
        return cls(trunk, head.numel(), a.layers * a.heads * a.head_dim)

    def flops(self, read: Read) -> float:
        """Those of a forward: two a weight and token, four a pair of tokens and element of the queries."""
        return 2.0 * (self.trunk * read.tokens + self.head * read.scored) + 4 * self.attention * read.pairs


def update_seconds(network: Network, steps: Iterable[Read], machine: Machine) -> float:
    """The least time of forwards and backwards over the sequences of optimizer steps."""
    return PASSES * sum(network.flops(read) for read in steps) / machine.flops


def engine_seconds(
    network: Network,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[int],
    itemsize: int,
    machine: Machine,
) -> float:
    """The least time to sample responses of these lengths, one list of prompts long.

    Prompts are read once each. A step of decoding reads all weights, or multiplies for as long.
    """
    asked = [([*prompt, 0], [False] * len(prompt) + [True]) for prompt in prompts]
    read = network.flops(Read.of(asked))
    decoded = 0.0
    for step in range(1, max(responses)):
        under_way = sum(length > step for length in responses)
        products = 2 * (network.trunk + network.head) * under_way / machine.flops
        decoded += max(products, (network.trunk + network.head) * itemsize / machine.bandwidth)
    return read / machine.flops + decoded
