"""Log-probabilities of several candidates for each token, beside those of the chosen one."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_pl.models.heads import Head
from grpo_pl.models.logprobs import Entropy, entropy_of, in_chunks


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
            distribution = among  # its zeros where there is no candidate add nothing to the entropy
        else:
            distribution = logits.log_softmax(-1)
            among = distribution.gather(-1, places).masked_fill(~valid, 0.0)
            chosen = distribution.gather(-1, target[:, None])[:, 0]
        return chosen, entropy_of(distribution, entropy), among

    return CandidateScores(*in_chunks(score, chunk_tokens, hidden, targets, candidates))


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

    def score(h: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        distribution = head.logits(h, temperature).log_softmax(-1)
        top = distribution.topk(top_k, -1)
        return distribution.gather(-1, target[:, None])[:, 0], top.indices.int(), top.values

    return TopScores(*in_chunks(score, chunk_tokens, hidden, targets))
