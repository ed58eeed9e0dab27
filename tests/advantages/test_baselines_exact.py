"""The average gradient of each estimator: every group of a toy policy is enumerated, nothing is sampled."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from helpers.exact import F64, close
from helpers.feedbacks import feedback
from torch import Tensor

from grpo_pl.advantages import (
    GAE,
    GDPO,
    OPO,
    AdvantageEstimator,
    GroupRelative,
    LeaveOneOut,
    PassAtK,
    ProcessGroupRelative,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
)

REWARDS = torch.tensor([0.3, 1.0, -0.5, 0.4, 0.1, 0.7, -1.0, 0.2, 0.9], dtype=F64)


class Toy:
    """Two tokens of vocabulary 3 from softmax logits, all of them parameters; token 0 first may end it."""

    def __init__(self, *, ends: bool = True, logits: Tensor | None = None) -> None:
        self.responses = [(a, b) for a in range(3) for b in range(3) if not (ends and a == 0 and b > 0)]
        self.lengths = [1 if ends and a == 0 else 2 for a, _ in self.responses]
        self.rewards = REWARDS[: len(self.responses)]
        generator = torch.Generator().manual_seed(3)
        logits = torch.randn(4, 3, dtype=F64, generator=generator) if logits is None else logits
        self.logits = logits.requires_grad_()
        per_token = self.token_logprobs()
        self.probabilities = per_token.sum(-1).exp().detach()
        self.scores = torch.stack(
            [
                torch.autograd.grad(entry, self.logits, retain_graph=True)[0].flatten()
                for entry in per_token.flatten()
            ]
        ).view(len(self.responses), 2, -1)
        """The gradient of the log-probability of each token of each response."""

    def token_logprobs(self) -> Tensor:
        first, second = self.logits[0].log_softmax(-1), self.logits[1:].log_softmax(-1)
        rows = [
            torch.stack([first[a], second[a, b] if length == 2 else 0 * first[a]])
            for (a, b), length in zip(self.responses, self.lengths, strict=True)
        ]
        return torch.stack(rows)

    def gradient(self, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """The exact gradient of a function of the probabilities of the responses."""
        value = objective(self.token_logprobs().sum(-1).exp())
        return torch.autograd.grad(value, self.logits)[0].flatten()

    def expected_reward(self, p: Tensor) -> Tensor:
        return (p * self.rewards).sum()

    def values(self) -> Tensor:
        """The true value before each token."""
        p, r = self.probabilities, self.rewards
        value = torch.zeros(len(p), 2, dtype=F64) + (p * r).sum()
        for n, (a, _) in enumerate(self.responses):
            same = torch.tensor([first == a for first, _ in self.responses])
            value[n, 1] = (p * r)[same].sum() / p[same].sum()
        return value

    def estimate(
        self, estimator: AdvantageEstimator, group: list[int], values: Tensor | None = None
    ) -> Tensor:
        """The gradient that an iteration of one prompt, with the given responses, ascends."""
        rows = torch.tensor(group)
        mask = torch.tensor([[False, True, length == 2] for length in self.lengths])[rows]
        last = torch.tensor(self.lengths)[rows]
        rewards = torch.zeros(len(group), 3, dtype=F64)
        rewards[torch.arange(len(group)), last] = self.rewards[rows]
        greedy = self.rewards[self.probabilities.argmax()]
        critic = None if values is None else torch.nn.functional.pad(values[rows], (1, 0)) * mask
        credit = estimator(
            feedback(
                rewards,
                mask,
                step_ends=rewards != 0,
                values=critic,
                greedy=greedy.expand(len(group)),
            )
        )
        return torch.einsum("nt,ntp->p", credit.advantages[:, 1:], self.scores[rows]) / len(group)

    def moments(
        self, estimator: AdvantageEstimator, size: int, values: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """The expectation of the estimate over all groups of a size, and its variance summed over entries."""
        mean, square = torch.zeros_like(self.scores[0, 0]), 0.0
        for group in itertools.product(range(len(self.responses)), repeat=size):
            chance = self.probabilities[list(group)].prod()
            estimate = self.estimate(estimator, list(group), values)
            mean += chance * estimate
            square += float(chance * estimate.square().sum())
        return mean, square - float(mean.square().sum())

    def expectation(self, estimator: AdvantageEstimator, size: int, values: Tensor | None = None) -> Tensor:
        return self.moments(estimator, size, values)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


TOY, EVEN = Toy(), Toy(ends=False)
EXACT = TOY.gradient(TOY.expected_reward)


def test_the_toy_has_a_distribution_and_a_gradient() -> None:
    for toy in (TOY, EVEN):
        assert math.isclose(float(toy.probabilities.sum()), 1.0, abs_tol=1e-12)
        scores = toy.scores.sum(1)
        close(toy.probabilities @ scores, torch.zeros_like(scores[0]))
        close((toy.probabilities * toy.rewards) @ scores, toy.gradient(toy.expected_reward))
    assert EXACT.norm() > 0.05


# --------------------------------------------------------------------------------------------------- unbiased


@pytest.mark.parametrize(
    ("estimator", "size"),
    [
        (LeaveOneOut(), 2),
        (LeaveOneOut(), 3),
        (GroupRelative(scale="none", leave_one_out=True), 3),
        (ReMax(), 1),
        (ReMax(), 2),
    ],
)
def test_a_baseline_that_does_not_depend_on_the_response_adds_no_bias(
    estimator: AdvantageEstimator, size: int
) -> None:
    close(TOY.expectation(estimator, size), EXACT)


@pytest.mark.parametrize("size", [2, 3])
def test_the_mean_of_the_group_shrinks_the_gradient_by_g_minus_1_over_g_alone(
    size: int,
) -> None:
    close(TOY.expectation(GroupRelative(scale="none"), size), EXACT * (size - 1) / size)


def test_gae_with_lam_1_is_unbiased_whatever_the_critic_says() -> None:
    wrong = torch.tensor([[0.4, -2.0 * n] for n in range(7)], dtype=F64)
    wrong[:, 1] = torch.tensor([0.0, 2.0, 2.0, 2.0, -1.0, -1.0, -1.0])  # a function of the first token
    close(TOY.expectation(GAE(lam=1.0, whiten=False), 1, wrong), EXACT)
    assert cosine(TOY.expectation(GAE(lam=0.0, whiten=False), 1, wrong), EXACT) < 0.9


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_with_the_true_values_gae_is_unbiased_for_every_lam(lam: float) -> None:
    close(TOY.expectation(GAE(lam=lam, whiten=False), 1, TOY.values()), EXACT)


@pytest.mark.parametrize(("k", "size"), [(2, 2), (2, 3), (3, 3)])
def test_pass_at_k_follows_the_gradient_of_the_expected_best_of_k(k: int, size: int) -> None:
    def best(p: Tensor) -> Tensor:
        sets = list(itertools.product(range(len(p)), repeat=k))
        return sum((p[list(s)].prod() * TOY.rewards[list(s)].max() for s in sets), p.new_zeros(()))

    exact = TOY.gradient(best)
    assert cosine(exact, EXACT) < 0.99
    close(TOY.expectation(PassAtK(k), size), exact)


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_std_of_the_others_scales_the_gradient_by_one_number_and_keeps_its_direction(ddof: int) -> None:
    inverse = 0.0
    for others in itertools.product(range(7), repeat=2):
        low, high = sorted(TOY.rewards[list(others)].tolist())
        std = (high - low) / math.sqrt(4 - 2 * ddof)
        inverse += float(TOY.probabilities[list(others)].prod()) * (1 / std if std else 1.0)
    estimator = GroupRelative(scale="group", ddof=ddof, eps=0.0, leave_one_out=True)
    close(TOY.expectation(estimator, 3), inverse * EXACT)


# ----------------------------------------------------------------------------------------------------- biased


ONE_SCALE = [
    GroupRelative(scale="group"),
    GroupRelative(scale="batch"),
    OPO(),
    ReinforcePlusPlus(),
    ReinforcePlusPlusBaseline(),
    ReinforcePlusPlusBaseline(over="tokens"),
    GDPO(),
    GAE(lam=1.0),
]
"""Estimators whose statistics contain the response itself, and are only a scale where responses are many."""


@pytest.mark.parametrize(
    "estimator", [*ONE_SCALE, ProcessGroupRelative()], ids=lambda estimator: type(estimator).__name__
)
def test_statistics_that_contain_the_response_itself_turn_the_gradient(estimator: AdvantageEstimator) -> None:
    values = torch.zeros(7, 2, dtype=F64)
    turned = cosine(TOY.expectation(estimator, 3, values), EXACT)
    assert 0.5 < turned < 0.9995


def test_two_responses_scaled_by_their_std_climb_how_often_one_beats_the_other() -> None:
    # (r_1 - r_2) / 2 over |r_1 - r_2| / sqrt(2) is +-1 / sqrt(2), however large the difference
    signs = (TOY.rewards[:, None] - TOY.rewards).sign()
    wins = TOY.gradient(lambda p: (p @ signs @ TOY.probabilities) / math.sqrt(2))
    close(TOY.expectation(GroupRelative(eps=0.0), 2), wins)


def test_the_length_weighted_baseline_only_shrinks_the_gradient_where_lengths_are_equal() -> None:
    close(EVEN.expectation(OPO(), 2), EVEN.gradient(EVEN.expected_reward) / 2)


# ---------------------------------------------------------------------------------------- with many responses

# Probabilities that are sixteenths, so that 16 responses are the whole distribution: G without end.
SIXTEENTHS = Toy(logits=torch.tensor([[1.0, 2.0, 1.0]] * 4, dtype=F64).log())
EVERYONE = [n for n, p in enumerate(SIXTEENTHS.probabilities) for _ in range(round(16 * float(p)))]


@pytest.mark.parametrize(
    "estimator", [GroupRelative(scale="none"), *ONE_SCALE], ids=lambda estimator: type(estimator).__name__
)
def test_with_many_responses_to_one_prompt_only_a_scale_is_left_of_the_bias(
    estimator: AdvantageEstimator,
) -> None:
    assert len(EVERYONE) == 16
    exact = SIXTEENTHS.gradient(SIXTEENTHS.expected_reward)
    values = torch.full((7, 2), 0.25, dtype=F64)
    assert cosine(SIXTEENTHS.estimate(estimator, EVERYONE, values), exact) > 1 - 1e-12


def test_a_discount_turns_the_gradient_also_with_many_responses() -> None:
    exact = SIXTEENTHS.gradient(SIXTEENTHS.expected_reward)
    assert cosine(SIXTEENTHS.estimate(ReinforcePlusPlus(gamma=0.5), EVERYONE), exact) < 0.999


def test_scaled_by_the_std_of_the_prompt_a_policy_climbs_the_arcsine_of_its_success_rate() -> None:
    toy = Toy(logits=torch.tensor([[1.0, 2.0, 1.0]] * 4, dtype=F64).log())
    toy.rewards = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=F64)
    arcsine = toy.gradient(lambda p: 2 * toy.expected_reward(p).sqrt().arcsin())
    close(toy.estimate(GroupRelative(ddof=0, eps=0.0), EVERYONE), arcsine)


# --------------------------------------------------------------------------------------------------- variance


def test_a_baseline_lowers_the_variance() -> None:
    toy = Toy()
    toy.rewards = toy.rewards + 3.0
    exact = toy.gradient(toy.expected_reward)
    alone, without = toy.moments(GAE(lam=1.0, whiten=False), 2, torch.zeros(7, 2, dtype=F64))
    of_others, with_others = toy.moments(LeaveOneOut(), 2)
    with_critic = toy.moments(GAE(lam=1.0, whiten=False), 2, toy.values())[1]
    close(alone, exact)
    close(of_others, exact)
    assert with_critic < with_others < without / 10
