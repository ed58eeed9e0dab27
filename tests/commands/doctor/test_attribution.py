"""Made-up gaps with a known cause are attributed to it."""

import pytest
import torch
from torch import Tensor

from grpo_pl.commands.doctor.attribution import (
    Hypothesis,
    attribute,
    by_position,
    explained,
    fits,
    summarize,
)
from grpo_pl.commands.doctor.draws import Draw, logprobs, suspects

M, V = 400, 50
POSITIONS = torch.arange(M).float() % 20
NOISE = 0.03
"""Of bfloat16, in nats."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOGITS = 2 * normal(M, V)
TARGETS = LOGITS.softmax(-1).multinomial(1, generator=torch.Generator().manual_seed(1))[:, 0]
SEEN = torch.zeros(M, V, dtype=torch.bool).scatter(1, TARGETS.roll(1)[:, None], True)
ASKED = 0.8


def of(*draws: Draw) -> Tensor:
    return logprobs(LOGITS, TARGETS, SEEN, draws)


def hypotheses(temperature: float = ASKED) -> list[Hypothesis]:
    others = suspects(temperature, {})
    base, *rows = of(Draw(temperature), *(draw for _, draw in others))
    return [
        Hypothesis(key, f"{key} {getattr(draw, key):g}", "mend it", row - base)
        for (key, draw), row in zip(others, rows, strict=True)
    ]


def gaps_of(draw: Draw) -> Tensor:
    return (of(draw) - of(Draw(ASKED)))[0]


# ------------------------------------------------------------------------------------------- ways to draw

FOUR = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
UNSEEN = torch.zeros(1, 4, dtype=torch.bool)


def by_hand(draw: Draw, target: int = 1, seen: Tensor = UNSEEN) -> float:
    """The probability of one of four tokens whose logits are the logs of `FOUR`."""
    return float(logprobs(FOUR.log(), torch.tensor([target]), seen, [draw])[0, 0].exp())


@pytest.mark.parametrize(
    ("draw", "probability"),
    [
        (Draw(1.0), 0.25),
        (Draw(0.5), 0.0625 / (0.25 + 0.0625 + 0.0225 + 0.01)),
        (Draw(1.0, top_p=0.7), 0.25 / 0.75),  # 0.5 is not enough, the second reaches it
        (Draw(1.0, top_p=0.9), 0.25 / 0.9),
        (Draw(1.0, top_k=3), 0.25 / 0.9),
        (Draw(1.0, min_p=0.4), 0.25 / 0.75),  # 0.4 * 0.5 = 0.2 is the least that is kept
    ],
)
def test_the_probability_of_a_token_by_hand(draw: Draw, probability: float) -> None:
    assert by_hand(draw) == pytest.approx(probability, rel=1e-5)


def test_a_repetition_penalty_multiplies_negative_logits_of_tokens_seen_before() -> None:
    seen = torch.tensor([[True, False, False, False]])
    assert by_hand(Draw(1.0, repetition_penalty=2.0), seen=seen) == pytest.approx(0.25 / (0.25 + 0.5))


def test_the_models_own_settings_are_suspected_first_and_what_was_asked_for_is_not() -> None:
    others = suspects(0.8, {"top_p": 0.83, "temperature": 0.8})
    assert ("top_p", Draw(0.8, top_p=0.83)) in others
    assert not [draw for _, draw in others if draw == Draw(0.8)]
    assert isinstance(dict(others)["top_k"].top_k, int)


# --------------------------------------------------------------------------------------------- attribution


@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (Draw(1.0), "temperature 1"),
        (Draw(0.5), "temperature 0.5"),
        (Draw(ASKED, top_p=0.9), "top_p 0.9"),
        (Draw(ASKED, top_k=5), "top_k 5"),
        (Draw(ASKED, min_p=0.1), "min_p 0.1"),
        (Draw(ASKED, repetition_penalty=1.2), "repetition_penalty 1.2"),
    ],
)
def test_a_shift_is_named_by_what_made_it_in_float32_and_through_the_noise_of_bfloat16(
    draw: Draw, named: str, noise: float
) -> None:
    gaps = gaps_of(draw) + noise * normal(M, seed=3)
    said = attribute(gaps, POSITIONS, hypotheses(), rounding=noise)
    assert [cause.found for cause in said.causes] == [named]
    assert said.rest <= said.tolerance


def test_noise_of_the_size_of_rounding_has_no_cause() -> None:
    for seed in range(20):
        said = attribute(NOISE * normal(M, seed=seed), POSITIONS, hypotheses(), rounding=NOISE * 0.8)
        assert said.causes == ()


def test_gaps_of_float32_are_not_even_looked_into() -> None:
    assert attribute(1e-5 * gaps_of(Draw(1.0)), POSITIONS, hypotheses()).causes == ()


def test_the_same_noise_without_rounding_to_explain_it_is_unexplained() -> None:
    (cause,) = attribute(NOISE * normal(M), POSITIONS, hypotheses()).causes
    assert cause.cause == "unexplained"


def test_stale_weights_are_a_sync_even_if_other_hypotheses_stand_beside() -> None:
    old = 0.4 * normal(M, seed=5)
    head = Hypothesis("sync", "the LM head", "repack", 0.2 * normal(M, seed=6) + 0.5 * old)
    everything = Hypothesis("sync", "all weights", "load", old)
    both = [*hypotheses(), head, everything]
    assert attribute(old + NOISE * normal(M), POSITIONS, both, NOISE).causes[0].found == "all weights"
    assert attribute(head.gaps + NOISE * normal(M), POSITIONS, both, NOISE).causes[0].found == "the LM head"


def test_two_causes_are_both_named() -> None:
    stale = Hypothesis("sync", "stale", "load", 0.4 * normal(M, seed=5))
    said = attribute(gaps_of(Draw(0.5)) + stale.gaps, POSITIONS, [*hypotheses(), stale])
    assert {cause.cause for cause in said.causes} == {"temperature", "sync"}
    assert said.rest < 1e-6


def test_a_gap_at_first_tokens_alone_is_the_prompts() -> None:
    gaps = torch.where(POSITIONS == 0, 0.3, 1e-6)
    (cause,) = attribute(gaps, POSITIONS, hypotheses()).causes
    assert cause.cause == "prompt"
    assert "prefix cache" in cause.fix


def test_a_gap_that_grows_along_the_response_is_named_so() -> None:
    gaps = 1e-3 * (POSITIONS / 5).exp() * normal(M).sign()
    (cause,) = attribute(gaps, POSITIONS, hypotheses()).causes
    assert cause.cause == "position"


def test_a_hypothesis_must_have_the_right_size_and_beat_chance() -> None:
    gaps = 0.1 * normal(M)
    assert fits(gaps, gaps)
    assert not fits(gaps, 3 * gaps)
    assert not fits(gaps, -gaps)
    assert not fits(gaps, 0.1 * normal(M, seed=9))
    assert not fits(gaps, torch.zeros(M))
    other = normal(M, seed=9)
    by_chance = (gaps @ other) / (other @ other) * other  # of just the size that fits best
    assert not fits(gaps, by_chance)
    assert explained(gaps, gaps) == 1
    assert explained(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(9 / 25)


def test_gaps_in_a_few_numbers_by_hand() -> None:
    summary = summarize(torch.tensor([0.1, -0.3, 0.0, 0.0]))
    assert summary.mean == pytest.approx(0.1)
    assert summary.most == pytest.approx(0.3)
    assert (summary.beyond, summary.worst) == (0.25, 1)
    where = by_position(torch.tensor([0.4, 0.1, -0.2, 0.6]), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert where == pytest.approx((0.4, 0.1, 0.4))
