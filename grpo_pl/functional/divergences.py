"""Divergences of two distributions over the same tokens, by sums over all of them: no samples.

Both arguments are log-probabilities in nats, and sum to 1 in the last dimension; the gradient flows through
the first, the student's.
"""

import torch
from jaxtyping import Float
from torch import Tensor

LOG_ALMOST_ALL = -1e-7
"""Above this log-probability the named tokens count as exactly this probable, so that the rest has some
probability: exp(-1e-7) leaves 1e-7, and float32 tells no smaller difference from 1."""


def reverse_kl(
    logprobs: Float[Tensor, "*shape V"], teacher: Float[Tensor, "*shape V"]
) -> Float[Tensor, "*shape"]:
    """KL(student || teacher) = sum_v p(v) (log p(v) - log q(v)), p the student's: mode seeking."""
    return (logprobs.exp() * (logprobs - teacher)).sum(-1)


def forward_kl(
    logprobs: Float[Tensor, "*shape V"], teacher: Float[Tensor, "*shape V"]
) -> Float[Tensor, "*shape"]:
    """KL(teacher || student) = sum_v q(v) (log q(v) - log p(v)), q the teacher's: mass covering."""
    return (teacher.exp() * (teacher - logprobs)).sum(-1)


def generalized_jsd(
    logprobs: Float[Tensor, "*shape V"], teacher: Float[Tensor, "*shape V"], beta: float
) -> Float[Tensor, "*shape"]:
    """D = beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p.

    The generalised Jensen-Shannon divergence of p, the student's, and q, the teacher's: GKD,
    arXiv:2306.13649, eq. 1, for beta in (0, 1). At 1/2 it is
    symmetric and at most log 2. D / beta tends to the forward KL as beta tends to 0, D / (1 - beta) to the
    reverse KL as beta tends to 1. At 0 and 1 itself D is 0; TRL puts those two KLs there.
    """
    weights = torch.tensor([1 - beta, beta], dtype=logprobs.dtype, device=logprobs.device).log()
    mixture = torch.logaddexp(logprobs + weights[0], teacher + weights[1])
    of_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
    return beta * of_teacher + (1 - beta) * (logprobs.exp() * (logprobs - mixture)).sum(-1)


def with_rest(logprobs: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K+1"]:
    """The log-probabilities of K tokens, and of all other tokens together: a distribution of K + 1 events."""
    named = logprobs.logsumexp(-1, keepdim=True).clamp(max=LOG_ALMOST_ALL)
    return torch.cat([logprobs, (-torch.expm1(named)).log()], -1)
