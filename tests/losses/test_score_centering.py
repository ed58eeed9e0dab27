"""What score centering takes off, by enumeration of every token and every candidate; and what it refuses."""

import math
from typing import Any

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.exact import F64, close
from helpers.experiences import experience
from helpers.run_results import NO_VALIDATION, rows
from torch import Tensor

from grpo_pl.losses import CISPO, ClippedSurrogate, PolicyLoss, Reinforce
from grpo_pl.losses.bypass import Bypass, CombinedCorrection
from grpo_pl.losses.correction import ImportanceCorrection
from grpo_pl.losses.rejection import RatioRejection
from grpo_pl.losses.score_centering import ScoreCentering, check_centering
from grpo_pl.types import TokenScores

PREFIXES, VOCABULARY = 3, 6
GENERATOR = torch.Generator().manual_seed(5)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=GENERATOR)


LOGITS = normal(PREFIXES, VOCABULARY).requires_grad_()
SAMPLER = (LOGITS.detach() + 0.7 * normal(PREFIXES, VOCABULARY)).log_softmax(-1)
"""q: another distribution at each prefix."""
ADVANTAGES = normal(PREFIXES, VOCABULARY)
REINFORCE, WEIGHTED = (Reinforce(), ScoreCentering()), (CISPO(0.5, 1.5), ScoreCentering(0.5, 1.5))
UNBOUNDED = (CISPO(0.0, 1e9), ScoreCentering(0.0, 1e9))


def gradient(of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(of, LOGITS, retain_graph=True, allow_unused=True, materialize_grads=True)
    return found


def ascended(
    loss: PolicyLoss, term: ScoreCentering | None, advantages: Tensor, k: int = VOCABULARY
) -> Tensor:
    """The mean gradient under the sampler: each token of each prefix (a row), weighted with its chance."""
    logprobs = LOGITS.log_softmax(-1)
    top = SAMPLER.topk(k)
    ids = top.indices[:, None].expand(-1, VOCABULARY, -1)
    batch = experience(
        torch.ones(PREFIXES, VOCABULARY, dtype=torch.bool),
        advantages=advantages,
        old_logprobs=SAMPLER,
        sampling_logprobs=SAMPLER,
        candidate_logprobs=top.values[:, None].expand(-1, VOCABULARY, -1),
    )
    batch.candidates = ids.int()
    losses = loss(logprobs, batch).loss
    if term is not None:
        candidates = logprobs.gather(-1, top.indices)[:, None].expand(-1, VOCABULARY, -1)
        losses = losses + term.term(TokenScores(logprobs=logprobs, candidates=candidates), batch).loss
    return -gradient((SAMPLER.exp() * losses).sum())


def weights_of(loss: PolicyLoss) -> Tensor:
    """w of each token at each prefix."""
    ratio = (LOGITS.detach().log_softmax(-1) - SAMPLER).exp()
    return ratio.clamp(loss.low, loss.high) if isinstance(loss, CISPO) else torch.ones_like(ratio)


def covariance(loss: PolicyLoss, advantages: Tensor) -> Tensor:
    """Cov_q(A, w grad log p), summed over prefixes."""
    centred = advantages - (SAMPLER.exp() * advantages).sum(-1, keepdim=True)
    return gradient((SAMPLER.exp() * centred * weights_of(loss) * LOGITS.log_softmax(-1)).sum())


@pytest.mark.parametrize(("loss", "term"), [REINFORCE, WEIGHTED, UNBOUNDED])
def test_with_the_whole_distribution_the_covariance_alone_is_left(
    loss: PolicyLoss, term: ScoreCentering
) -> None:
    close(ascended(loss, term, ADVANTAGES), covariance(loss, ADVANTAGES))


@pytest.mark.parametrize(("loss", "term"), [REINFORCE, WEIGHTED])
def test_an_advantage_that_all_tokens_share_drifts_without_it_and_not_with_it(
    loss: PolicyLoss, term: ScoreCentering
) -> None:
    same = torch.ones_like(ADVANTAGES)
    drift = gradient((SAMPLER.exp() * weights_of(loss) * LOGITS.log_softmax(-1)).sum())
    assert drift.norm() > 0.1
    close(ascended(loss, None, same), drift)
    close(ascended(loss, term, same), torch.zeros_like(drift))


def test_it_changes_nothing_on_average_where_weights_are_exact_or_engines_agree() -> None:
    """E_q[w grad log p] is 0 with w = p / q, and with q = p."""
    loss, term = UNBOUNDED
    close(ascended(loss, term, ADVANTAGES), ascended(loss, None, ADVANTAGES))
    p = LOGITS.detach().log_softmax(-1)
    ids = torch.arange(VOCABULARY).expand(1, 1, -1)
    known = torch.ones_like(ids, dtype=torch.bool)
    for term in (ScoreCentering(), ScoreCentering(0.5, 2.0)):
        found = term.coefficients(p[:1, None], p[:1, None], known)
        close(gradient((found * LOGITS[:1].log_softmax(-1)[:, None]).sum()), torch.zeros_like(LOGITS))


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (0.5, 1.5), (0.0, 1e9)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_tail_is_the_policys_scaled_to_the_mass_that_is_left(k: int, bounds: tuple[float, float]) -> None:
    """Against the sum over the whole vocabulary of q w grad log p with that q."""
    logprobs, top = LOGITS.log_softmax(-1), SAMPLER.topk(k)
    p = logprobs.detach().exp()
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, top.indices, True)
    left, of_policy = ((mass * ~inside).sum(-1, keepdim=True) for mass in (SAMPLER.exp(), p))
    q = torch.where(inside, SAMPLER.exp(), p * left / of_policy)
    close(q.sum(-1), torch.ones(PREFIXES, dtype=F64))
    whole = gradient((q * (p / q).clamp(*bounds) * logprobs).sum())
    candidates, known = logprobs.gather(-1, top.indices), torch.ones_like(top.indices, dtype=torch.bool)
    found = ScoreCentering(*bounds).coefficients(
        candidates.detach()[:, None], top.values[:, None], known[:, None]
    )
    close(gradient((found[:, 0] * candidates).sum()), whole)


def test_more_candidates_bring_the_mean_gradient_nearer_to_the_covariance() -> None:
    """A tail of one token has no shape to get wrong, so all but one are as good as all."""
    exact = covariance(REINFORCE[0], ADVANTAGES)
    errors = [float((ascended(*REINFORCE, ADVANTAGES, k) - exact).norm()) for k in (1, 2, 4, 5, 6)]
    assert errors[:3] == sorted(errors[:3], reverse=True)
    assert (
        max(errors[3:])
        < 1e-12
        < errors[2]
        < errors[0]
        < (ascended(REINFORCE[0], None, ADVANTAGES) - exact).norm()
    )


def test_fewer_candidates_are_marked_and_the_tail_mass_is_logged() -> None:
    """One candidate of probability 0.75 and an empty place: what stands there does not matter."""
    mask = torch.tensor([[False, True]])
    batch = experience(mask, advantages=torch.tensor([[0.0, 2.0]], dtype=F64))
    batch.candidates = torch.tensor([[[-1, -1], [3, -1]]], dtype=torch.int32)
    batch.candidate_logprobs = torch.tensor([[[0.0, 0.0], [math.log(0.75), -9.0]]], dtype=F64)
    candidates = torch.tensor([[[0.0, 0.0], [math.log(0.5), 0.0]]], dtype=F64)
    found = ScoreCentering().term(TokenScores(logprobs=candidates[..., 0], candidates=candidates), batch)
    close(found.metrics["sync/sampler_tail"][0, 1], 0.25)
    close(found.loss[0, 1], 2 * (0.75 - 0.25 / 0.5 * 0.5) * math.log(0.5))


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("loss", "term", "correction", "message"),
    [
        (ClippedSurrogate(), ScoreCentering(), None, r"model\.terms\.c ScoreCentering centres weights"),
        (CISPO(), ScoreCentering(0.0, 5.0), None, r"model\.terms\.c ScoreCentering centres weights"),
        (CISPO(), ScoreCentering(), Bypass(), r"model\.terms\.c has the bounds 1 and 1 .* have 0 and 5"),
        (Reinforce(), ScoreCentering(0.0, 5.0), None, r"model\.terms\.c has the bounds 0 and 5"),
        (Reinforce(), ScoreCentering(), ImportanceCorrection(), r"does not know the weights"),
        (
            CISPO(),
            ScoreCentering(0.0, 5.0),
            CombinedCorrection([Bypass(), RatioRejection()]),
            r"does not know the weights of model\.correction CombinedCorrection",
        ),
    ],
)
def test_weights_that_it_does_not_know_are_refused(
    loss: PolicyLoss, term: ScoreCentering, correction: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_centering({"c": term}, loss, correction)


def test_what_goes_together_is_taken() -> None:
    assert check_centering({"c": ScoreCentering()}, Reinforce(), None)
    assert check_centering({"c": ScoreCentering(0.0, 5.0)}, CISPO(), Bypass())
    assert not check_centering({}, ClippedSurrogate(), ImportanceCorrection())


CENTERED = ("--model.loss", "Reinforce", "--model.terms", '{"centering": {"class_path": "ScoreCentering"}}')


def test_a_run_without_the_samplers_tokens_or_without_a_use_for_them_is_refused(
    fit: Fit, refused: Refused
) -> None:
    assert "set data.sampling.top_logprobs, for instance to 128" in refused(fit, *CENTERED)
    assert "nothing reads them" in refused(fit, "--data.sampling.top_logprobs", "8")
    both = ("--data.sampling.top_logprobs", "8", "--data.sampling.top_k", "20")
    assert "top_logprobs=8: not with a top_p or top_k" in refused(fit, *CENTERED, *both)


def test_with_all_tokens_known_an_engine_that_agrees_has_no_tail_and_the_gradient_of_reinforce(
    fit: Fit,
) -> None:
    """On policy, each token's own centre is 0: the engine is the trainer here, but for rounding."""
    once = ("--trainer.max_epochs", "1", "--model.kl", "null", "--data.minibatches", "1", *NO_VALIDATION)
    plain = rows(fit(*once, "--model.loss", "Reinforce"))[1]
    centred = rows(fit(*once, *CENTERED, "--data.sampling.top_logprobs", "100000"))[1]
    assert centred["sync/sampler_tail"] == pytest.approx(0.0, abs=1e-5)
    assert centred["train/grad_norm"] == pytest.approx(plain["train/grad_norm"], rel=1e-3)
    some = rows(fit(*once, *CENTERED, "--data.sampling.top_logprobs", "4", "--data.resample.rounds", "2"))[1]
    assert 0.1 < some["sync/sampler_tail"] < 1
