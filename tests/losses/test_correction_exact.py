"""Bias and variance of corrections, by enumeration of all responses of an engine that is not the trainer."""

import itertools
import math

import pytest
import torch
from helpers.exact import F64, close
from helpers.experiences import experience
from torch import Tensor

from grpo_pl.losses import ClippedSurrogate
from grpo_pl.losses.bypass import Bypass
from grpo_pl.losses.correction import ImportanceCorrection, MismatchCorrection
from grpo_pl.losses.rejection import RatioRejection

RESPONSES = torch.tensor(list(itertools.product(range(3), repeat=2)))
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(4, 3, dtype=F64, generator=GENERATOR).requires_grad_()
ENGINE = (LOGITS.detach() + 0.5 * torch.randn(4, 3, dtype=F64, generator=GENERATOR)).log_softmax(-1)
REWARDS = torch.randn(9, dtype=F64, generator=GENERATOR)
MASK = torch.ones(9, 2, dtype=torch.bool)


def of_tokens(table: Tensor) -> Tensor:
    """The log-probability of each token of each response."""
    first, second = RESPONSES.T
    return torch.stack([table[0, first], table[1 + first, second]], -1)


TRAINER = of_tokens(LOGITS.log_softmax(-1))
SAMPLED = of_tokens(ENGINE)
CHANCES = SAMPLED.sum(-1).exp()
"""Of each response under the engine."""


def gradient(of: Tensor) -> Tensor:
    return torch.autograd.grad(of, LOGITS, retain_graph=True)[0].flatten()


EXACT = gradient((TRAINER.sum(-1).exp() * REWARDS).sum())
PLAIN = gradient((CHANCES[:, None] * REWARDS[:, None] * TRAINER).sum())


def expected(correction: MismatchCorrection) -> Tensor:
    """The gradient that is ascended on average: sum of reward * weight * grad log-probability."""
    weights, _, kept = correction(TRAINER.detach(), SAMPLED, MASK)
    factors = torch.ones_like(SAMPLED) if weights is None else weights
    factors = factors if kept is None else factors * kept
    return gradient((CHANCES[:, None] * REWARDS[:, None] * factors * TRAINER).sum())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_the_toy_has_a_mismatch() -> None:
    close(CHANCES.sum(), 1.0)
    assert cosine(PLAIN, EXACT) < 0.995


def test_weights_of_sequences_without_bounds_are_unbiased() -> None:
    close(expected(ImportanceCorrection("sequence", high=math.inf)), EXACT)


@pytest.mark.parametrize(
    "correction",
    [
        ImportanceCorrection("token", high=math.inf),
        ImportanceCorrection("geometric", high=math.inf),
        ImportanceCorrection("sequence", high=1.2),
        ImportanceCorrection("sequence", "mask", high=1.2),
        RatioRejection("geometric", 0.8, 1.2),
    ],
)
def test_the_others_are_biased(correction: MismatchCorrection) -> None:
    assert cosine(expected(correction), EXACT) < 0.9999


def test_weights_of_tokens_speak_of_the_trainer_at_the_prefixes_that_the_engine_reaches() -> None:
    """E over the engine's first token, over the trainer's second one: right at each prefix, not in their mix.

    The push on the first token has the value of what the engine would say next, that on the second token the
    weight with which the engine comes to its prefix.
    """
    p, q = LOGITS.log_softmax(-1), ENGINE
    rewards = REWARDS.view(3, 3)
    value = (q[1:].exp() * rewards).sum(-1)  # of the first tokens, when the engine goes on
    first = (p[0].exp() * value).sum()
    second = (q[0].exp()[:, None] * p[1:].exp() * rewards).sum()
    close(expected(ImportanceCorrection("token", high=math.inf)), gradient(first + second))


def test_normalised_weights_have_mean_1_and_the_direction_of_those_that_are_not() -> None:
    plain = ImportanceCorrection("sequence", high=1.2)(TRAINER.detach(), SAMPLED, MASK).weights
    scaled = ImportanceCorrection("sequence", high=1.2, normalize=True)(
        TRAINER.detach(), SAMPLED, MASK
    ).weights
    assert plain is not None
    assert scaled is not None
    close(scaled, plain / plain[:, 0].mean())
    close(scaled[:, 0].mean(), 1.0)


def test_the_effective_share_of_weights_of_sequences_falls_exponentially_with_the_length() -> None:
    """1 / E[w^2] = 1 / (sum p^2 / q)^T of T independent tokens; all sequences are counted."""
    p = torch.tensor([0.5, 0.5], dtype=F64)
    counts = torch.tensor([1, 3])  # quarters, so that 4^T equal samples are the engine's distribution
    q = counts / 4.0
    square = float((p**2 / q).sum())
    for length in (1, 2, 4):
        samples = torch.tensor(list(itertools.product([0, 1, 1, 1], repeat=length)))
        old, sampling = p.log()[samples], q.log()[samples].double()
        mask = torch.ones_like(samples, dtype=torch.bool)
        shares = {
            level: ImportanceCorrection(level, high=math.inf)(old, sampling, mask).metrics[
                "sync/effective_sample_share"
            ]
            for level in ("token", "sequence", "geometric")
        }
        assert shares["sequence"] == pytest.approx(square**-length)
        assert shares["token"] == pytest.approx(1 / square)
        assert shares["geometric"] >= shares["token"] - 1e-12


def test_bypass_mode_has_the_gradient_of_weights_of_tokens_where_nothing_is_clipped() -> None:
    assert Bypass().bypasses
    batch = experience(MASK, old_logprobs=SAMPLED, advantages=REWARDS[:, None].expand(9, 2))
    loss = ClippedSurrogate(clip_low=1.0, clip_high=1e6)(TRAINER, batch).loss
    got = gradient(-(CHANCES[:, None] * loss).sum())
    close(got, expected(ImportanceCorrection("token", high=math.inf)))
