"""Divergences of whole distributions: values by hand, identities, and what merging events does to them."""

import math

import pytest
import torch
from helpers.exact import F64, close, f64
from torch import Tensor

from grpo_pl.functional import forward_kl, generalized_jsd, reverse_kl, with_rest

HALVES, QUARTERS = f64([0.5, 0.5]).log(), f64([0.25, 0.75]).log()


def distributions(seed: int, tokens: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(50, tokens, dtype=F64, generator=generator)).log_softmax(-1)


STUDENT, TEACHER = distributions(0), distributions(1)
KINDS = {
    "reverse": reverse_kl,
    "forward": forward_kl,
    "jsd": lambda p, q: generalized_jsd(p, q, 0.3),
}


def test_the_two_kls_of_a_fair_and_an_unfair_coin() -> None:
    close(reverse_kl(HALVES, QUARTERS), 0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    close(forward_kl(HALVES, QUARTERS), 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))


def test_the_divergence_between_certainties_is_that_of_the_prior_of_the_mixture() -> None:
    sure, other = f64([1 - 1e-15, 1e-15]).log(), f64([1e-15, 1 - 1e-15]).log()
    close(generalized_jsd(sure, other, 0.5), math.log(2), tolerance=1e-12)
    entropy = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)  # of which of the two a token comes from
    close(generalized_jsd(sure, other, 0.2), entropy, tolerance=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_is_0_of_a_distribution_from_itself_and_positive_from_others(kind: str) -> None:
    close(KINDS[kind](STUDENT, STUDENT), torch.zeros(50, dtype=F64))
    assert (KINDS[kind](STUDENT, TEACHER) > 0.01).all()


def test_the_weights_of_the_mixture_are_the_teachers_and_the_students() -> None:
    close(generalized_jsd(STUDENT, TEACHER, 0.3), generalized_jsd(TEACHER, STUDENT, 0.7))


def test_near_its_ends_the_divergence_is_a_share_of_one_kl() -> None:
    close(generalized_jsd(STUDENT, TEACHER, 1e-7) / 1e-7, forward_kl(STUDENT, TEACHER), tolerance=1e-4)
    close(generalized_jsd(STUDENT, TEACHER, 1 - 1e-7) / 1e-7, reverse_kl(STUDENT, TEACHER), tolerance=1e-4)


def test_the_rest_completes_a_distribution() -> None:
    whole = with_rest(STUDENT[:, :5])
    close(whole.exp().sum(-1), torch.ones(50, dtype=F64))
    close(whole[:, -1].exp(), STUDENT[:, 5:].exp().sum(-1))


def test_the_rest_of_all_tokens_is_nearly_nothing_and_finite_in_float32() -> None:
    rest = with_rest(torch.tensor([[0.0, -40.0]]))[:, -1]
    assert rest.isfinite()
    assert rest.exp() < 2e-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [1, 4, 11])
def test_merging_tokens_never_raises_a_divergence_and_merging_one_changes_nothing(
    kind: str, named: int
) -> None:
    merged = KINDS[kind](with_rest(STUDENT[:, :named]), with_rest(TEACHER[:, :named]))
    whole = KINDS[kind](STUDENT, TEACHER)
    if named == 11:  # the rest is the twelfth token
        close(merged, whole, tolerance=1e-9)
    else:
        assert (merged < whole).all()
