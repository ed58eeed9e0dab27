"""Log-probabilities from hidden states, chunk by chunk: logits of a whole batch never exist."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from grpo_pl.models.heads import Head, LayerHead

FLOAT_ROWS = 16
"""Rows of logits in float32 at a time, 3 MB with 49,152 tokens in the vocabulary."""
Entropy = Literal["value", "gradient"]
"""Entropy alone, or with its gradient."""


def chunked_logprobs(
    hidden: Float[Tensor, "M H"],
    targets: Int[Tensor, "M"],
    head: Head,
    temperature: float,
    chunk_tokens: int,
    entropy: Entropy | None,
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"] | None]:
    """Log-probability of each target and entropy of the distribution it was drawn from, in nats, float32.

    The head runs on at most `chunk_tokens` rows at a time, and again in the backward but for the last
    ones, so at most `[chunk_tokens, V]` logits exist at once.
    """
    if isinstance(head, LayerHead) and head.is_plain:
        layer, scale = head.layer, head.scale / temperature
        arguments = (hidden, layer.weight, layer.bias, targets, scale, chunk_tokens, entropy)
        of_head = torch.float32 if head.in_float32 else None
        logprobs, entropies = LinearLogprobs.apply(*arguments, of_head)  # type: ignore[no-untyped-call]
        return logprobs, entropies if entropy else None

    def chosen(h: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        log_distribution = head.logits(h, temperature).log_softmax(-1)
        logprobs = log_distribution.gather(-1, target[:, None])[:, 0]
        return (logprobs,) if entropy is None else (logprobs, entropy_of(log_distribution, entropy))

    logprobs, *entropies = in_chunks(chosen, chunk_tokens, hidden, targets)
    return logprobs, entropies[0] if entropies else None


def in_chunks(score: Callable[..., tuple[Tensor, ...]], chunk_tokens: int, *columns: Tensor) -> list[Tensor]:
    """The results of a function of rows, at most `chunk_tokens` at a time, each joined.

    Where there is a gradient, a chunk is computed again in the backward.
    """
    rows = chunks(len(columns[0]), chunk_tokens) or [slice(0)]
    pieces = [[column[some] for column in columns] for some in rows]
    if torch.is_grad_enabled():
        parts = [checkpoint(score, *piece, use_reentrant=False) for piece in pieces]
    else:
        parts = [score(*piece) for piece in pieces]
    return [torch.cat(results) for results in zip(*parts, strict=True)]


def entropy_of(log_distribution: Float[Tensor, "M V"], entropy: Entropy | None) -> Float[Tensor, "M"]:
    """The entropy of each row, in nats; with its gradient only if that is asked for."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy == "gradient"):
        return -(log_distribution.exp() * log_distribution).sum(-1)


class LinearLogprobs(torch.autograd.Function):
    """The same for a head that is a plain linear layer, in few passes over the logits.

    A chunk's logits come from one matrix product and stay in its precision; float32 results take `FLOAT_ROWS`
    rows at a time, which fit a CPU's cache. With p the distribution, log p the chosen log-probability and H
    its entropy, the gradient of the logits is that of log p, one-hot(target) - p, and that of H,
    -p (log p + H), each times the incoming gradient. It overwrites the logits, which are kept for the last
    chunk and recomputed for the others.
    """

    @staticmethod
    @override
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        chunk_tokens: int,
        entropy: Entropy | None,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        h, w, b = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        normalisers, logprobs, entropies = torch.empty((3, len(h)), device=h.device)
        product = None
        for block in even_chunks(len(h), chunk_tokens):
            product = None  # before the next one takes its place
            with torch.autocast(kind, enabled=False):  # the types are chosen already
                product = linear(h[block], w, b)
            for rows, part in in_parts(product, block):
                logits = scaled(part, scale)
                normaliser = logits.logsumexp(-1, keepdim=True)
                normalisers[rows] = normaliser[:, 0]
                logprobs[rows] = (logits.gather(-1, targets[rows, None]) - normaliser)[:, 0]
                if entropy is not None:
                    logits = logits - normaliser
                    entropies[rows] = -logits.exp().mul_(logits).sum(-1)
        ctx.save_for_backward(h, weight, bias, targets, normalisers, entropies)
        ctx.scale, ctx.chunk_tokens, ctx.hidden_dtype = scale, chunk_tokens, hidden.dtype
        ctx.last_product = product if any(ctx.needs_input_grad) else None
        if entropy != "gradient":
            ctx.mark_non_differentiable(entropies)
        ctx.entropy = entropy
        return logprobs, entropies

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        w, b = weight.to(h.dtype), None if bias is None else bias.to(h.dtype)
        (of_logprobs, of_entropies), learns = gradients, ctx.needs_input_grad[1]

        def of_logits(rows: slice, product: Tensor) -> Tensor:
            logprobs: Tensor = scaled(product, ctx.scale) - normalisers[rows, None]
            above = of_logprobs[rows, None]
            if ctx.entropy == "gradient":
                p = logprobs.exp()
                above_entropy = of_entropies[rows, None]
                grad = logprobs.add_(entropies[rows, None]).mul_(-above_entropy).sub_(above).mul_(p)
            else:
                grad = logprobs.exp_().mul_(-above)
            grad.scatter_add_(-1, targets[rows, None], above)
            return grad if ctx.scale == 1 else grad.mul_(ctx.scale)

        grad_hidden = torch.empty_like(h)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learns and not len(h) else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        product, ctx.last_product = ctx.last_product, None  # a second backward computes it again
        for block in reversed(even_chunks(len(h), ctx.chunk_tokens)):
            grad = linear(h[block], w, b) if product is None else product
            product = None
            for rows, part in in_parts(grad, block):
                part.copy_(of_logits(rows, part))
            grad_hidden[block] = grad @ w
            if learns:
                added = grad.T @ h[block]
                grad_weight = added.float() if grad_weight is None else grad_weight.add_(added)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            del grad, part
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden.to(ctx.hidden_dtype), grad_weight, grad_bias, *[None] * 5


def chunks(stop: int, size: int, start: int = 0) -> list[slice]:
    """The rows from start to stop, `size` at a time."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def even_chunks(stop: int, most: int) -> list[slice]:
    """The rows up to stop in the fewest chunks of at most `most`, all of about the same size."""
    return chunks(stop, -(-stop // -(-stop // most))) if stop else []


def in_parts(product: Tensor, block: slice) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a block and their logits, a few at a time."""
    parts = product.split(FLOAT_ROWS)
    return zip(chunks(block.stop, FLOAT_ROWS, block.start), parts, strict=True)


def scaled(product: Tensor, scale: float) -> Tensor:
    """Logits in float32, read-only: they may be the product itself."""
    return product.float() if scale == 1 else product.float() * scale
