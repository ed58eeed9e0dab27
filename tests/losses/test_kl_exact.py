"""What each KL estimator and its gradient are, by enumeration of every action: no sampling, no tolerance.

The policy has a table of logits: one row for the empty prefix, and one for each first token. Expectations are
sums over all tokens, weighted with probabilities that carry no gradient, as samples do.
"""

from collections.abc import Callable

import pytest
import torch
from helpers.exact import F64, close
from torch import Tensor

from grpo_pl.functional import kl_k3
from grpo_pl.losses.entropy import EntropyBonus
from grpo_pl.losses.kl import KLInLoss, KLInReward, KLPenalty
from grpo_pl.types import Experience, TokenScores

VOCABULARY = 4


def table(seed: int) -> Tensor:
    """Log-probabilities [1 + V, V] of tokens after each prefix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1 + VOCABULARY, VOCABULARY, dtype=F64, generator=generator).log_softmax(-1)


REFERENCE, OLD = table(1), table(2)
LOGITS = table(3).requires_grad_()


def every_token(old: Tensor, reference: Tensor) -> Experience:
    """A micro-batch in which row n holds the tokens after prefix n, one of each."""
    return Experience(
        token_ids=torch.zeros(old.shape, dtype=torch.int64),
        loss_mask=torch.ones(old.shape, dtype=torch.bool),
        sampling_logprobs=old,
        old_logprobs=old,
        advantages=torch.zeros_like(old),
        temperature=1.0,
        ref_logprobs=reference,
    )


def logged(penalty: KLPenalty, policy: Tensor, old: Tensor, reference: Tensor) -> float:
    """The expectation of `train/kl` under tokens that the old policy drew."""
    scores = TokenScores(logprobs=policy)
    return float((old.exp() * penalty.term(scores, every_token(old, reference)).metrics["train/kl"]).sum())


def gradient(of: Tensor) -> Tensor:
    return torch.autograd.grad(of, LOGITS, allow_unused=True, materialize_grads=True)[0]


def expected_loss(estimator: str, kind: str, old: Tensor) -> Tensor:
    """The mean of the penalty over samples of `old`, summed over prefixes."""
    penalty = KLInLoss(coefficient=1.0, estimator=estimator, gradient=kind)
    loss, _ = penalty.loss(LOGITS.log_softmax(-1), every_token(old, REFERENCE))
    return (old.exp() * loss).sum()


def reverse_kl() -> Tensor:
    """KL(policy || reference), summed over prefixes."""
    logp = LOGITS.log_softmax(-1)
    return (logp.exp() * (logp - REFERENCE)).sum()


def forward_kl() -> Tensor:
    """KL(reference || policy), summed over prefixes."""
    return (REFERENCE.exp() * (REFERENCE - LOGITS.log_softmax(-1))).sum()


def mean_of_k2() -> Tensor:
    """The divergence that k2 estimates: the mean of half the squared log-ratio, a function of the policy."""
    logp = LOGITS.log_softmax(-1)
    return (logp.exp() * (logp - REFERENCE).square() / 2).sum()


def nothing() -> Tensor:
    return (0.0 * LOGITS).sum()


POLICY = LOGITS.detach().log_softmax(-1)

# estimator, what its value is the mean of, what its plain gradient is the gradient of on policy
PLAIN = [
    ("k1", reverse_kl, nothing),
    ("k2", mean_of_k2, reverse_kl),
    ("k3", reverse_kl, forward_kl),
]


@pytest.mark.parametrize(("estimator", "value", "differentiated"), PLAIN)
def test_on_policy_the_value_and_the_plain_gradient_are_what_the_docstring_says(
    estimator: str, value: Callable[[], Tensor], differentiated: Callable[[], Tensor]
) -> None:
    loss = expected_loss(estimator, "plain", POLICY)
    close(loss, value())
    close(gradient(loss), gradient(differentiated()))


@pytest.mark.parametrize(("estimator", "value"), [row[:2] for row in PLAIN])
@pytest.mark.parametrize("old", [POLICY, OLD], ids=["on_policy", "off_policy"])
def test_the_unbiased_gradient_is_that_of_the_value_on_policy_and_off(
    estimator: str, value: Callable[[], Tensor], old: Tensor
) -> None:
    loss = expected_loss(estimator, "unbiased", old)
    close(loss, value())
    close(gradient(loss), gradient(value()))


def test_the_three_gradients_are_three_directions() -> None:
    # else the two tests above could not tell them apart
    reverse, forward, of_k2 = (gradient(of()) for of in (reverse_kl, forward_kl, mean_of_k2))
    for one, other in ((reverse, forward), (reverse, of_k2), (forward, of_k2)):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) < 0.99
        assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_off_policy_the_plain_gradient_is_biased(estimator: str) -> None:
    got = gradient(expected_loss(estimator, "plain", OLD))
    for divergence in (reverse_kl, forward_kl):
        assert (got - gradient(divergence())).abs().max() > 0.1


# ------------------------------------------------------------------------------------ responses of two tokens


def responses() -> tuple[Tensor, Tensor]:
    """Policy log-probabilities [V * V, 2] of all responses of two tokens, and the reference's."""
    first, second = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY)).T
    logp = LOGITS.log_softmax(-1)
    return tuple(torch.stack([p[0, first], p[1 + first, second]], -1) for p in (logp, REFERENCE))


def kl_of_responses() -> Tensor:
    logp, ref = responses()
    return (logp.sum(-1).exp() * (logp - ref).sum(-1)).sum()


def test_in_the_reward_k1_has_the_gradient_of_the_divergence_of_whole_responses() -> None:
    logp, ref = responses()
    cost = KLInReward(coefficient=0.5).cost(logp.detach(), ref)
    probability = logp.detach().sum(-1).exp()
    close((probability * cost.sum(-1)).sum(), 0.5 * kl_of_responses())
    reinforce = (probability * cost.sum(-1) * logp.sum(-1)).sum()
    close(gradient(reinforce), gradient(0.5 * kl_of_responses()))


def test_in_the_loss_what_a_token_does_to_later_ones_has_no_gradient() -> None:
    logp, ref = responses()
    loss, _ = KLInLoss(1.0, "k1", "unbiased").loss(logp, every_token(logp.detach(), ref))
    got = gradient((logp.detach().sum(-1).exp() * loss.sum(-1)).sum())
    by_token = LOGITS.log_softmax(-1)
    of_prefix = (by_token.exp() * (by_token - REFERENCE)).sum(-1)
    prefixes_given = of_prefix[0] + (by_token[0].detach().exp() * of_prefix[1:]).sum()
    close(got, gradient(prefixes_given))
    assert (got - gradient(kl_of_responses()))[0].abs().max() > 0.1


# ---------------------------------------------------------------------------------------------------- entropy


def test_the_entropy_bonus_has_the_gradient_of_the_entropy_and_points_upwards() -> None:
    logp = LOGITS.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    upwards = -gradient(EntropyBonus(coefficient=0.3).loss(entropy[None]).sum())
    close(upwards, (0.3 * -logp.exp() * (logp + entropy[:, None])).detach())  # dH / dlogit = -p (log p + H)
    moved = (LOGITS + 0.01 * upwards).log_softmax(-1)
    assert -(moved.exp() * moved).sum() > entropy.sum()


@pytest.mark.parametrize("penalty", [KLInLoss(0.1, "k1"), KLInLoss(0.1, "k2"), KLInReward(0.1)])
def test_the_logged_divergence_is_unbiased_wherever_the_policy_has_gone(penalty: KLPenalty) -> None:
    """As far as the policy moves within a rollout: k3 of the old policy's samples is then another number."""
    generator = torch.Generator().manual_seed(0)
    start, step = (torch.randn(1, 50, dtype=F64, generator=generator) for _ in range(2))
    reference, old = ((start + scale * step).log_softmax(-1) for scale in (0.0, 0.2))
    for scale in (0.2, 0.6, 1.2):
        policy = (start + scale * step).log_softmax(-1)
        true = float((policy.exp() * (policy - reference)).sum())
        alone = float((old.exp() * kl_k3(policy, reference)).sum())
        assert logged(penalty, policy, old, reference) == pytest.approx(true, rel=1e-12)
        assert (abs(alone / true - 1) > 0.1) == (scale > 0.2)


def test_on_the_old_policy_the_logged_divergence_is_k3_to_the_last_bit() -> None:
    policy, reference = table(4).float(), table(5).float()
    metrics = KLInLoss().term(TokenScores(logprobs=policy), every_token(policy, reference)).metrics
    assert torch.equal(metrics["train/kl"], kl_k3(policy, reference))
