"""Score centering: the mean score under the sampler is taken off the policy gradient of each token."""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import bounded_exp
from grpo_pl.losses.base import LossTerm, PolicyLoss
from grpo_pl.losses.correction import MismatchCorrection
from grpo_pl.losses.surrogates import CISPO, Reinforce
from grpo_pl.system.refusal import ArgumentError, ConfigError
from grpo_pl.types import Experience, TokenLoss, TokenScores

SMALLEST_TAIL = 1e-6
"""Tail masses below this count as this: where the candidates hold all mass, the tail has no gradient."""


@final
class ScoreCentering(LossTerm):
    """A sum_v q(v) w(v) log p(v): takes the drift out of a policy gradient whose tokens another policy drew.

    Marek and Ryabinin 2026, "Score Centering Stabilizes Off-policy Reinforcement Learning", arXiv:2609.20807;
    also prime-rl and miles. With q the sampler's distribution at a prefix and p the policy's,
    the policy loss alone ascends on average E_q[A w grad log p] = E_q[A] E_q[w grad log p] + Cov_q(A, w grad
    log p). The first factor of the drift is not 0 at a prefix, however advantages are centred over responses;
    the second is 0 if q = p, or w = p / q, and not else. With this term, whose gradient is -A E_q[w grad log
    p] of what is ascended, the covariance alone is left. It is that under q: neither the gradient of the
    expected reward under p nor without bias.

    q is known on the sampler's `data.sampling.top_logprobs` likeliest tokens H, with their probabilities in
    the whole vocabulary. Outside it is taken as p scaled to the mass that is left, as in the paper and its
    authors' code (github.com/martin-marek/score-centering): q = rho p with rho = (1 - sum_H q) / (1 - sum_H
    p). As sum_v p grad log p = 0, the tail's part is that of the candidates, and their coefficients are q w(p
    / q) - rho w(1 / rho) p: exact where q is known in full. The sampled token is among them only if it is one
    of the likeliest, or the mean would depend on the sample.

    The weights are w = clip(p / q, low, high), those of `CISPO` where `model.correction` is `Bypass`, and 1
    with the defaults, those of `Reinforce`. Other policy losses have weights that are no function of p / q,
    and are refused, as are rejections, which depend on the sampled token.

    It logs `sync/sampler_tail`, the mass of q outside of the candidates, a mean over tokens.

    Args:
        low: The lowest weight, in [0, 1]: that of CISPO; 1 with Reinforce.
        high: The highest weight, 1 or more: that of CISPO; 1 with Reinforce.
    """

    description = "the score centering of tokens"

    def __init__(self, low: float = 1.0, high: float = 1.0) -> None:
        if not 0 <= low <= 1 <= high:
            raise ArgumentError(f"low={low}, high={high}: expected 0 <= low <= 1 <= high")
        self.low, self.high = low, high

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        assert scores.candidates is not None, "check_centering asks for them"
        assert batch.candidates is not None, "check_centering asks for them"
        assert batch.candidate_logprobs is not None, "check_centering asks for them"
        known = batch.candidates >= 0
        coefficients = self.coefficients(scores.candidates.detach(), batch.candidate_logprobs, known)
        centre = (coefficients * scores.candidates).sum(-1)
        tail = 1 - torch.where(known, batch.candidate_logprobs.exp(), 0.0).sum(-1)
        return TokenLoss(batch.advantages * centre, {"sync/sampler_tail": tail.clamp(min=0)})

    def coefficients(
        self,
        logprobs: Float[Tensor, "B T K"],
        sampling_logprobs: Float[Tensor, "B T K"],
        known: Bool[Tensor, "B T K"],
    ) -> Float[Tensor, "B T K"]:
        """What multiplies the score of each candidate: its own share of the mean, less that of the tail."""
        p = torch.where(known, logprobs.exp(), 0.0)
        q = torch.where(known, sampling_logprobs.exp(), 0.0)
        tail_p, tail_q = ((1 - mass.sum(-1, keepdim=True)).clamp(min=SMALLEST_TAIL) for mass in (p, q))
        rho = tail_q / tail_p
        own = q * self.weight(torch.where(known, logprobs - sampling_logprobs, 0.0))
        return own - rho * self.weight(-rho.log()) * p

    def weight(self, log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The weight of a token with this log(p / q)."""
        return bounded_exp(log_ratio).clamp(self.low, self.high)


def check_centering(
    terms: Mapping[str, LossTerm], loss: PolicyLoss, correction: MismatchCorrection | None
) -> bool:
    """Whether a term centres scores; refuses one whose weights are not those of the policy loss."""
    named = [(name, term) for name, term in terms.items() if isinstance(term, ScoreCentering)]
    for name, term in named:
        bypassed = correction is not None and correction.bypasses
        if not (isinstance(loss, CISPO) and bypassed) and not isinstance(loss, Reinforce):
            raise ConfigError(
                f"model.terms.{name} ScoreCentering centres weights that are a function of the policy over "
                "the engine: set model.loss to Reinforce, or to CISPO with model.correction Bypass"
            )
        weights = (loss.low, loss.high) if isinstance(loss, CISPO) else (1.0, 1.0)
        if (term.low, term.high) != weights:
            raise ConfigError(
                f"model.terms.{name} has the bounds {term.low:g} and {term.high:g} and the weights of "
                f"model.loss {type(loss).__name__} have {weights[0]:g} and {weights[1]:g}: set low and high "
                "to those"
            )
        if correction is not None and (correction.rejects or not bypassed):
            raise ConfigError(
                f"model.terms.{name} ScoreCentering does not know the weights of model.correction "
                f"{type(correction).__name__}: set it to null, or to Bypass with model.loss CISPO"
            )
    return bool(named)


def check_top_logprobs_read(top_logprobs: int, centers_scores: bool) -> None:
    """Refuse a term without the likeliest tokens that it reads, and such tokens that nothing reads."""
    if centers_scores and not top_logprobs:
        raise ConfigError(
            "model.terms has ScoreCentering, which reads the sampler's likeliest tokens: set "
            "data.sampling.top_logprobs, for instance to 128"
        )
    if top_logprobs and not centers_scores:
        raise ConfigError(
            f"data.sampling.top_logprobs={top_logprobs} and nothing reads them: set it to 0, or add "
            "ScoreCentering to model.terms"
        )
