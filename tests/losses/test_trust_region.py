"""DPPO and the off-policy mask: by hand, and what the two-way divergences are bounds of, by enumeration."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.exact import F64, close, f64
from helpers.experiences import experience
from torch import Tensor

from grpo_pl.losses import DPPO, GSPO, ClipCov, ClippedSurrogate, OffPolicyMask, PolicyLoss
from grpo_pl.losses.trust_region import binary_kl, total_variation
from grpo_pl.types import Experience

# ------------------------------------------------------------------------------------------------------- DPPO

# low = 0.1 and high = 0.3. Columns: A, mu, pi, whether the token is stopped
TABLE = [
    (2.0, 0.5, 0.79, 0),  # risen by 0.29, which high allows
    (2.0, 0.5, 0.81, 1),
    (2.0, 0.5, 0.1, 0),  # fallen, and a push would bring it back
    (2.0, 0.001, 0.2, 0),  # 200 times as probable, and the distribution has hardly moved
    (-2.0, 0.5, 0.41, 0),
    (-2.0, 0.5, 0.39, 1),
    (-2.0, 0.9, 0.79, 1),  # a ratio of 0.88, which PPO's clip would let push
    (-2.0, 0.5, 0.99, 0),  # risen though it was bad: pushed back
    (-2.0, 0.05, 0.0001, 0),  # a ratio of 0.002, which PPO's clip would stop
    (0.0, 0.5, 0.99, 0),
]
ADVANTAGES, MU, PI, STOPPED = f64(TABLE).T[:, None]


def of_table(loss: PolicyLoss, **columns: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Losses, their gradient, and metrics."""
    logprobs = PI.log().requires_grad_()
    batch = experience(torch.ones_like(STOPPED, dtype=torch.bool), advantages=ADVANTAGES, **columns)
    got = loss(logprobs, batch)
    return got.loss.detach(), torch.autograd.grad(got.loss.sum(), logprobs)[0], got.metrics


def test_dppo_stops_tokens_whose_probability_has_moved_too_far_and_no_others() -> None:
    weight = torch.where(STOPPED == 1, 0.0, (PI / MU).clamp(max=20.0))
    got, gradient, metrics = of_table(DPPO(low=0.1, high=0.3), sampling_logprobs=MU.log())
    close(got, -weight * ADVANTAGES * PI.log())
    close(gradient, -weight * ADVANTAGES)
    assert torch.equal(metrics["train/clip_fraction"], STOPPED.float())
    assert weight.max() == 20.0, "of the rare token"
    _, unbounded, _ = of_table(DPPO(low=0.1, high=0.3, max_ratio=None), sampling_logprobs=MU.log())
    close(unbounded[0, 3], -2.0 * 200)


def test_the_probabilities_before_the_tokens_are_the_engines_or_the_old_policys() -> None:
    far = {"sampling_logprobs": torch.full_like(MU, -9.0), "old_logprobs": MU.log()}
    near = {"sampling_logprobs": MU.log(), "old_logprobs": torch.full_like(MU, -9.0)}
    of_old, of_sampler = of_table(DPPO(behaviour="old"), **far), of_table(DPPO(), **near)
    assert torch.equal(of_old[0], of_sampler[0])
    assert not torch.equal(of_old[0], of_table(DPPO(), **far)[0])


def test_the_bounds_of_dppo_kl_are_on_the_two_way_kl_in_nats() -> None:
    divergence = MU * (MU / PI).log() + (1 - MU) * ((1 - MU) / (1 - PI)).log()
    close(binary_kl(PI.log(), MU.log()), divergence, 1e-6)
    for bound in (0.01, 0.1, 0.22):
        loss = DPPO("kl", low=bound, high=bound)
        _, gradient, metrics = of_table(loss, sampling_logprobs=MU.log())
        stopped = (divergence > bound) & ((PI - MU) * ADVANTAGES > 0)
        assert stopped.any()
        assert torch.equal(metrics["train/clip_fraction"], stopped.float())
        assert torch.equal(gradient == 0, stopped | (ADVANTAGES == 0))


def test_the_two_way_divergences_of_every_token_are_lower_bounds_of_the_whole_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    pi, mu = (3 * torch.randn(2, 200, 5, dtype=F64, generator=generator)).log_softmax(-1)
    variation = (pi.exp() - mu.exp()).abs().sum(-1, keepdim=True) / 2
    divergence = (mu.exp() * (mu - pi)).sum(-1, keepdim=True)
    assert (total_variation(pi, mu) <= variation + 1e-12).all()
    assert (binary_kl(pi, mu) <= divergence + 1e-6).all()
    of_two = slice(0, 2)  # where there are two tokens only, they are the whole ones
    pi, mu = pi[:, of_two].log_softmax(-1), mu[:, of_two].log_softmax(-1)
    close(total_variation(pi, mu), ((pi.exp() - mu.exp()).abs().sum(-1, keepdim=True) / 2).expand(200, 2))
    close(binary_kl(pi, mu), (mu.exp() * (mu - pi)).sum(-1, keepdim=True).expand(200, 2), 2e-3)


def test_the_first_gradient_is_reinforces_times_the_ratio_of_trainer_to_engine() -> None:
    logprobs = f64([[-0.5, -2.0]]).requires_grad_()
    batch = experience(
        torch.ones(1, 2, dtype=torch.bool),
        old_logprobs=logprobs.detach(), sampling_logprobs=f64([[-0.6, -1.8]]), advantages=f64([[2.0, -1.0]]),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(DPPO()(logprobs, batch).loss.sum(), logprobs)
    close(gradient, [[-2.0 * math.exp(0.1), math.exp(-0.2)]])


# ----------------------------------------------------------------------------------------- off-policy mask

MASK = torch.tensor([[True, True, False], [True, True, False], [True, True, True], [True, True, True]])


def drifted(advantages: list[list[float]]) -> tuple[Tensor, Experience]:
    """Mean drifts from the engine: 0.5, 0.25, 0.5 and 0.5 nats; 9 at padding."""
    drift = f64([[0.9, 0.1, 9.0], [0.4, 0.1, 9.0], [0.0, 1.0, 0.5], [1.5, 0.0, 0.0]])
    logprobs = torch.full_like(drift, -2.0)
    return logprobs, experience(
        MASK, sampling_logprobs=logprobs + drift, old_logprobs=logprobs + 0.1, advantages=f64(advantages)
    )


def test_bad_responses_that_the_policy_has_left_have_no_loss_and_stay_in_the_denominators() -> None:
    logprobs, batch = drifted([[-1.0] * 3, [-1.0] * 3, [1.0] * 3, [-1.0, 1.0, 0.0]])
    loss, metrics = OffPolicyMask(ClippedSurrogate(), threshold=0.3)(logprobs, batch)
    plain = ClippedSurrogate()(logprobs, batch)
    left_out = [[1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    close(loss, torch.where(torch.tensor(left_out) == 1, 0.0, plain.loss))
    assert metrics.pop("train/off_policy_masked").tolist() == left_out
    assert all(torch.equal(metrics[name], value) for name, value in plain.metrics.items())
    assert batch.counted is batch.loss_mask


def test_a_drift_at_the_threshold_is_allowed() -> None:
    logprobs, batch = drifted([[-1.0] * 3] * 4)
    exactly = OffPolicyMask(threshold=0.5).left_out(logprobs, batch)
    assert not exactly.any()


def test_the_mask_lies_over_any_policy_loss_and_asks_for_what_that_one_asks() -> None:
    logprobs, batch = drifted([[1.0] * 3] * 4)
    assert torch.equal(OffPolicyMask(GSPO())(logprobs, batch).loss, GSPO()(logprobs, batch).loss)
    assert OffPolicyMask(ClipCov()).prepares_with_old_logprobs
    assert not OffPolicyMask().prepares_with_old_logprobs
    assert OffPolicyMask(DPPO()).of_sampler
    assert not OffPolicyMask(DPPO(behaviour="old")).of_sampler


# -------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPPO(low=0.0), r"^low=0\.0: expected a number above 0"),
        (lambda: DPPO(high=math.nan), r"^high=nan: expected a number above 0"),
        (lambda: DPPO(max_ratio=0.5), r"^max_ratio=0\.5: expected 1 or more, or null"),
        (lambda: OffPolicyMask(threshold=-0.1), r"^threshold=-0\.1: expected 0 or more, in nats a token"),
    ],
)
def test_a_bad_argument_is_refused(build: Callable[[], PolicyLoss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("loss", ["DPPO", "VESPO", "OffPolicyMask"])
def test_to_correct_twice_for_the_mismatch_is_refused(loss: str, fit: Fit, refused: Refused) -> None:
    inner = ("--model.loss.loss", "DPPO") if loss == "OffPolicyMask" else ()
    sentence = refused(fit, "--model.loss", loss, *inner, "--model.correction", "ImportanceCorrection")
    assert "would both correct for the mismatch" in sentence
    assert "set model.correction to null" in sentence
