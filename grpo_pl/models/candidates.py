"""Log-probabilities of several candidates for each token, beside those of the chosen one."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo_pl.models.heads import Head
from grpo_pl.models.logprobs import Entropy, chunks


class CandidateScores(NamedTuple):
    """A language model's scores of chosen tokens and of their candidates, in nats, float32."""

    logprobs: Float[Tensor, "M"]
    entropy: Float[Tensor, "M"]
    candidates: Float[Tensor, "M K"]
    """0 where a token has fewer candidates."""


def candidate_logprobs(
    hidden: Float[Tensor, "M H"],
    targets: Int[Tensor, "M"],
    candidates: Int[Tensor, "M K"],
    head: Head,
    temperature: float,
    chunk_tokens: int,
    entropy: Entropy | None = "value",
    renormalized: bool = False,
) -> CandidateScores:
    """Scores with gradient: at most `chunk_tokens` rows of logits exist at once, in the backward too.

    A candidate of -1 is none. With `renormalized` the distribution is that over the candidates alone, which
    must contain the target: log p(v) - log sum_{u in candidates} p(u). So a policy is scored that samples
    from these tokens, as with top-k or top-p.
    """

    def score(h: Tensor, target: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        logits, valid, places = head.logits(h, temperature), ids >= 0, ids.clamp(min=0).long()
        if renormalized:
            among = logits.gather(-1, places).masked_fill(~valid, -torch.inf).log_softmax(-1)
            among = among.masked_fill(~valid, 0.0)
            chosen = torch.where(ids == target[:, None], among, 0.0).sum(-1)
            distribution, counted = among, valid
        else:
            distribution = logits.log_softmax(-1)
            among = distribution.gather(-1, places).masked_fill(~valid, 0.0)
            chosen = distribution.gather(-1, target[:, None])[:, 0]
            counted = torch.ones_like(distribution, dtype=torch.bool)
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy == "gradient"):
            spread = -torch.where(counted, distribution.exp() * distribution, 0.0).sum(-1)
        return chosen, spread, among

    rows = chunks(len(hidden), chunk_tokens) or [slice(0)]
    pieces = [(hidden[some], targets[some], candidates[some]) for some in rows]
    if torch.is_grad_enabled():
        parts = [checkpoint(score, *piece, use_reentrant=False) for piece in pieces]
    else:
        parts = [score(*piece) for piece in pieces]
    return CandidateScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


class TopScores(NamedTuple):
    """A language model's scores of chosen tokens and of its own most probable ones, in nats, float32."""

    logprobs: Float[Tensor, "M"]
    ids: Int[Tensor, "M K"]
    candidates: Float[Tensor, "M K"]
    """The log-probabilities of the tokens `ids`, the highest first."""


@torch.no_grad()
def top_logprobs(
    hidden: Float[Tensor, "M H"],
    targets: Int[Tensor, "M"],
    head: Head,
    temperature: float,
    chunk_tokens: int,
    top_k: int,
) -> TopScores:
    """Scores without gradient; at most `chunk_tokens` rows of logits exist at once."""

    def score(rows: slice) -> tuple[Tensor, ...]:
        distribution = head.logits(hidden[rows], temperature).log_softmax(-1)
        top = distribution.topk(top_k, -1)
        return distribution.gather(-1, targets[rows, None])[:, 0], top.indices.int(), top.values

    parts = [score(rows) for rows in chunks(len(hidden), chunk_tokens) or [slice(0)]]
    return TopScores(*(torch.cat(column) for column in zip(*parts, strict=True)))
