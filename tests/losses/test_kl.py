"""The penalties on leaving the reference; what their gradients are the gradients of: test_kl_exact.py."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.exact import F64
from helpers.run_results import NO_VALIDATION, untimed

from grpo_pl.losses.entropy import EntropyBonus
from grpo_pl.losses.kl import AdaptiveCoefficient, KLInLoss, KLInReward
from grpo_pl.types import Experience


def against(ref_logprobs: torch.Tensor, old_logprobs: torch.Tensor | None = None) -> Experience:
    """A micro-batch of which only the log-probabilities of the reference and the old policy matter."""
    blank = torch.zeros_like(ref_logprobs)
    return Experience(
        token_ids=blank.long(),
        loss_mask=torch.ones_like(blank, dtype=torch.bool),
        sampling_logprobs=blank,
        old_logprobs=blank if old_logprobs is None else old_logprobs,
        advantages=blank,
        temperature=1.0,
        ref_logprobs=ref_logprobs,
    )


LN2 = math.log(2)


def test_the_penalty_is_the_coefficient_times_k3_and_the_estimate_is_k3_itself() -> None:
    # d = ref - logprob = ln 2, 0, -ln 2: k3 = 2 - ln 2 - 1, 0, 1/2 + ln 2 - 1
    logprobs = torch.tensor([[-2.0, -1.0, -1.0]], dtype=F64)
    ref = logprobs + torch.tensor([[LN2, 0.0, -LN2]], dtype=F64)
    k3 = torch.tensor([[1 - LN2, 0.0, LN2 - 0.5]], dtype=F64)
    loss, divergence = KLInLoss(coefficient=0.25).loss(logprobs, against(ref, logprobs.detach()))
    torch.testing.assert_close(loss, 0.25 * k3)
    torch.testing.assert_close(divergence, k3)


def test_the_gradient_is_coefficient_times_1_minus_reference_over_policy() -> None:
    # d = ln 2: 1 - 2 = -1, which raises a token that the reference likes better; d = -ln 2: 1 - 1/2 = 1/2
    logprobs = torch.tensor([[-2.0, -1.0, -1.0]], dtype=F64, requires_grad=True)
    ref = logprobs.detach() + torch.tensor([[LN2, 0.0, -LN2]], dtype=F64)
    loss, divergence = KLInLoss(coefficient=0.04).loss(logprobs, against(ref, logprobs.detach()))
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.04, 0.0, 0.02]], dtype=F64))
    assert not divergence.requires_grad


def test_a_coefficient_of_0_still_measures_the_divergence() -> None:
    logprobs = torch.tensor([[-1.0]])
    loss, divergence = KLInLoss(coefficient=0.0).loss(logprobs, against(logprobs - 1, logprobs))
    assert loss.item() == 0.0
    assert divergence.item() == pytest.approx(math.exp(-1) + 1 - 1)


def test_the_default_is_the_papers_beta() -> None:
    assert KLInLoss().coefficient == 0.04


def test_a_step_along_the_expected_gradient_brings_the_policy_nearer_to_the_reference() -> None:
    ref = torch.tensor([0.6, 0.3, 0.1], dtype=F64).log()
    logits = torch.zeros(3, dtype=F64, requires_grad=True)
    for _ in range(400):
        logp = logits.log_softmax(-1)
        loss, _ = KLInLoss(coefficient=1.0).loss(logp[None], against(ref[None]))
        (gradient,) = torch.autograd.grad((logp.detach().exp() * loss[0]).sum(), logits)
        logits = (logits - gradient).detach().requires_grad_()
    torch.testing.assert_close(logits.detach().softmax(-1), ref.exp(), rtol=0, atol=1e-6)


# d = ref - logprob = ln 2, 0, -ln 2
K1, K2 = [-LN2, 0.0, LN2], [LN2**2 / 2, 0.0, LN2**2 / 2]
K3 = [1 - LN2, 0.0, LN2 - 0.5]


@pytest.mark.parametrize(("estimator", "by_hand"), [("k1", K1), ("k2", K2), ("k3", K3)])
def test_every_estimator_by_hand_and_the_divergence_is_always_k3(
    estimator: str, by_hand: list[float]
) -> None:
    logprobs = torch.tensor([[-2.0, -1.0, -1.0]], dtype=F64)
    ref = logprobs + torch.tensor([[LN2, 0.0, -LN2]], dtype=F64)
    expected = 0.25 * torch.tensor([by_hand], dtype=F64)
    loss, divergence = KLInLoss(0.25, estimator).loss(logprobs, against(ref, logprobs.detach()))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(divergence, torch.tensor([K3], dtype=F64))
    penalty = KLInReward(0.25, estimator)
    torch.testing.assert_close(penalty.cost(logprobs, ref), expected)
    loss, divergence = penalty.loss(logprobs.requires_grad_(), against(ref, logprobs.detach()))
    assert not loss.any()
    torch.testing.assert_close(divergence, torch.tensor([K3], dtype=F64))
    assert not divergence.requires_grad


def test_the_unbiased_gradient_weighs_with_the_ratio_to_the_old_policy() -> None:
    # ratio = 2, k1 = ln 2 - 0 ... : the loss is 2 k, its gradient 2 (k + 1)
    old = torch.tensor([[-2.0, -1.0]], dtype=F64)
    logprobs = (old + LN2).requires_grad_()
    ref = logprobs.detach() - torch.tensor([[0.5, -0.5]], dtype=F64)
    loss, _ = KLInLoss(1.0, "k1", "unbiased").loss(logprobs, against(ref, old))
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([[1.0, -1.0]], dtype=F64))
    torch.testing.assert_close(logprobs.grad, torch.tensor([[3.0, 1.0]], dtype=F64))


def test_beyond_the_bound_a_token_costs_the_bound_and_has_no_gradient() -> None:
    # d = ref - logprob = ln 2, 0, -ln 2; k1 = -d is bounded on both sides
    logprobs = torch.tensor([[-2.0, -1.0, -1.0]], dtype=F64, requires_grad=True)
    ref = logprobs.detach() + torch.tensor([[LN2, 0.0, -LN2]], dtype=F64)
    loss, divergence = KLInLoss(0.5, "k1", bound=0.25).loss(logprobs, against(ref, logprobs.detach()))
    torch.testing.assert_close(loss, torch.tensor([[-0.125, 0.0, 0.125]], dtype=F64))
    torch.testing.assert_close(divergence, torch.tensor([K3], dtype=F64))
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, 0.5, 0.0]], dtype=F64))
    cost = KLInReward(0.5, "k1", bound=0.25).cost(logprobs.detach(), ref)
    torch.testing.assert_close(cost, loss.detach())


def test_the_bound_is_that_of_what_is_differentiated() -> None:
    # rho = 2 and k3 = 1 - ln 2 = 0.307 for d = ln 2: rho k3 = 0.614
    logprobs = torch.tensor([[-2.0]], dtype=F64, requires_grad=True)
    batch = against(logprobs.detach() + LN2, old_logprobs=logprobs.detach() - LN2)
    for bound, expected in ((0.5, 0.5), (0.7, 2 * (1 - LN2))):
        loss, _ = KLInLoss(1.0, "k3", "unbiased", bound=bound).loss(logprobs, batch)
        assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("build", [KLInLoss, KLInReward])
def test_a_bound_of_0_is_refused(build: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"^bound=0\.0: expected a number above 0, or null"):
        build(bound=0.0)


@pytest.mark.parametrize("gradient", ["plain", "unbiased"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_policies_without_overlap_give_finite_penalties_and_gradients(estimator: str, gradient: str) -> None:
    logprobs = torch.tensor([[-1e4, 0.0, -1e4, 0.0]], requires_grad=True)
    batch = against(torch.tensor([[0.0, -1e4, -1e4, 0.0]]), torch.tensor([[0.0, -1e4, 0.0, -1e4]]))
    loss, divergence = KLInLoss(1.0, estimator, gradient).loss(logprobs, batch)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert divergence.isfinite().all()
    assert logprobs.grad.isfinite().all()


# --------------------------------------------------------------------------------------- adaptive coefficient


def test_the_controller_moves_by_the_clipped_relative_error_over_the_horizon() -> None:
    penalty = KLInLoss(0.5, controller=AdaptiveCoefficient(target=0.1, horizon=4.0))
    assert float(penalty.coefficient) == 0.5
    for divergence, factor in ((0.11, 1 + 0.1 / 4), (5.0, 1 + 0.2 / 4), (0.1, 1.0), (0.0, 1 - 0.2 / 4)):
        before = float(penalty.coefficient)
        penalty.adapt(divergence)
        assert float(penalty.coefficient) == pytest.approx(before * factor, rel=1e-6)


def test_the_coefficient_of_now_multiplies_the_loss_and_the_cost() -> None:
    logprobs, ref = torch.tensor([[-1.0]]), torch.tensor([[-2.0]])
    for build in (KLInLoss, KLInReward):
        penalty = build(1.0, "k1", controller=AdaptiveCoefficient(horizon=1.0))
        penalty.adapt(math.inf)
        loss, _ = penalty.loss(logprobs, against(ref))
        cost = penalty.cost(logprobs, ref)
        torch.testing.assert_close(loss if cost is None else cost, torch.tensor([[1.2]]))


def test_a_fixed_coefficient_stays_and_has_no_state() -> None:
    penalty = KLInReward(0.3)
    penalty.adapt(7.0)
    assert penalty.coefficient == 0.3
    assert not penalty.state_dict()


def test_a_resumed_run_goes_on_with_its_own_coefficient(fit: Fit) -> None:
    adaptive = (
        *("--model.kl.controller", "AdaptiveCoefficient", "--model.kl.controller.horizon", "2"),
        *("--model.optimizer.lr", "0.003", *NO_VALIDATION),
    )
    whole = fit("--trainer.max_epochs", "4", "--checkpoint.every_n_epochs", "2", *adaptive)
    half = fit("--trainer.max_epochs", "2", *adaptive)
    fit("--trainer.max_epochs", "4", "--ckpt_path", "last", *adaptive, root=half)
    assert untimed(whole) == untimed(half)
    coefficients = [row["train/kl_coefficient"] for row in untimed(half)[1:]]
    divergences = [row["train/kl"] for row in untimed(half)[1:]]
    assert coefficients[0] == pytest.approx(0.01)
    for i in range(3):
        factor = 1 + min(max(divergences[i] / 0.1 - 1, -0.2), 0.2) / 2
        assert coefficients[i + 1] == pytest.approx(coefficients[i] * factor, rel=1e-5)
        assert coefficients[i + 1] != coefficients[i]


def test_a_kl_in_the_reward_changes_what_is_learned_and_is_measured(fit: Fit) -> None:
    two = ("--trainer.max_epochs", "2", "--data.update_epochs", "2", "--model.optimizer.lr", "0.01")
    free, held = (
        untimed(fit(*two, "--model.kl", "KLInReward", "--model.kl.coefficient", coefficient, *NO_VALIDATION))
        for coefficient in ("0.0", "10.0")
    )
    assert free[1] | {"train/kl_coefficient": 10.0} == held[1]  # no divergence yet, so no cost
    assert free[2]["rollout/reward"] == held[2]["rollout/reward"]  # that of the task, without the cost
    assert held[2]["train/kl"] > 0
    assert free[2]["train/grad_norm"] != held[2]["train/grad_norm"]
    silent = [rows[2]["rollout/groups_without_signal"] for rows in (free, held)]
    assert silent[0] == silent[1] > 0  # that responses differ in what they cost is no signal


# -------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KLInLoss(coefficient=-0.1), r"^coefficient=-0\.1: expected 0 or more"),
        (lambda: KLInReward(coefficient=math.nan), r"^coefficient=nan: expected 0 or more"),
        (
            lambda: AdaptiveCoefficient(target=0.0),
            r"^target=0\.0: expected a number above 0",
        ),
        (
            lambda: AdaptiveCoefficient(horizon=-1.0),
            r"^horizon=-1\.0: expected a number",
        ),
        (
            lambda: KLInLoss(coefficient=0.0, controller=AdaptiveCoefficient()),
            r"^coefficient=0\.0: expected more than 0, for the controller multiplies it",
        ),
        (lambda: EntropyBonus(coefficient=math.inf), r"^coefficient=inf: expected a finite"),
    ],
)
def test_a_bad_argument_is_refused_with_its_key_and_what_is_expected(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("build", [KLInLoss, KLInReward])
def test_an_unknown_estimator_is_refused_by_the_command_line(build: type, fit: Fit, refused: Refused) -> None:
    said = refused(fit, "--model.kl", build.__name__, "--model.kl.estimator", "k4")
    assert "model.kl.estimator: expected one of 'k1', 'k2', 'k3', got k4" in said


def test_a_negative_entropy_coefficient_is_a_penalty() -> None:
    torch.testing.assert_close(EntropyBonus(-0.5).loss(torch.tensor([[2.0]])), torch.tensor([[1.0]]))
