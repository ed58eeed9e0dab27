"""Main effects and interactions: by hand, by what cancels, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from grpo_pl.commands.compare.statistics import holm
from grpo_pl.commands.compare.statistics.factorial import Contrast, Step, contrasts, factor_effects

TWO = {"critic": ["value", "none"], "reference": ["kl", "none"]}
THREE = TWO | {"reward": ["rule", "model"]}
STUDIES = 2000


def inside_binomial(count: int, p: float) -> bool:
    """Whether a count is one that a coin of this p gives in all but 1 of 1000 simulations."""
    low, high = stats.binom.ppf([0.0005, 0.9995], STUDIES, p)
    return bool(low <= count <= high)


def named(contrast: Contrast) -> str:
    return " x ".join(f"{step.factor}={step.level}" for step in contrast.steps)


def test_the_effects_of_a_two_by_two_by_hand() -> None:
    # cells: value,kl  value,none / none,kl  none,none
    outcomes = np.array([[[0.50, 0.40], [0.44, 0.20]], [[0.52, 0.40], [0.40, 0.20]]])
    critic, reference, both = factor_effects(outcomes, contrasts(TWO))
    assert critic.steps == (Step("critic", "none", "value"),)
    assert critic.by_seed == pytest.approx(((-0.06 - 0.20) / 2, (-0.12 - 0.20) / 2))
    assert reference.by_seed == pytest.approx(((-0.10 - 0.24) / 2, (-0.12 - 0.20) / 2))
    assert both.by_seed == pytest.approx((-0.24 + 0.10, -0.20 + 0.12))
    # mean -0.145, std 0.0212132, t(0.975, 1) = 12.7062047
    half = 12.7062047 * 0.0212132 / 2**0.5
    assert critic.interval == pytest.approx((-0.145, -0.145 - half, -0.145 + half), abs=1e-6)


def test_every_level_is_held_against_the_first_and_each_pair_of_levels_has_an_interaction() -> None:
    found = contrasts({"a": ["0", "1", "2"], "b": ["0", "1", "2"]})
    assert [named(c) for c in found[:4]] == ["a=1", "a=2", "b=1", "b=2"]
    assert [named(c) for c in found[4:]] == ["a=1 x b=1", "a=1 x b=2", "a=2 x b=1", "a=2 x b=2"]
    assert found[1].weights.tolist() == [[-1 / 3] * 3, [0] * 3, [1 / 3] * 3]
    assert found[5].weights.tolist() == [[1, 0, -1], [-1, 0, 1], [0, 0, 0]]


def test_what_a_seed_adds_to_all_combinations_is_in_no_effect() -> None:
    outcomes = np.random.default_rng(0).normal(size=(4, 2, 2, 2))
    shifted = outcomes + np.arange(4.0).reshape(4, 1, 1, 1)
    for one, other in zip(*(factor_effects(o, contrasts(THREE)) for o in (outcomes, shifted)), strict=True):
        assert one.by_seed == pytest.approx(other.by_seed)


def test_effects_that_add_have_no_interaction() -> None:
    added = np.add.outer([0.0, 0.1, 0.3], [0.0, -0.2])[None]
    effects = factor_effects(added, contrasts({"a": ["0", "1", "2"], "b": ["0", "1"]}))
    assert [e.interval.mean for e in effects] == pytest.approx([0.1, 0.3, -0.2, 0, 0])


def test_main_effects_are_one_family_and_interactions_another() -> None:
    outcomes = np.random.default_rng(1).normal(size=(5, 2, 2, 2))
    effects = factor_effects(outcomes, contrasts(THREE))
    main, interactions = effects[:3], effects[3:]
    for family in (main, interactions):
        assert [e.p_adjusted for e in family] == holm([e.p for e in family if e.p is not None])
    declared = factor_effects(outcomes, contrasts(THREE), margin=0.1)
    assert [e.p_adjusted for e in declared] == [min(3 * e.p, 1) for e in declared if e.p is not None]
    for effect in declared:
        assert effect.p_adjusted is not None
        zero_outside = effect.simultaneous.low > 0 or effect.simultaneous.high < 0
        assert zero_outside == (effect.p_adjusted < 0.05)


def test_one_seed_or_seeds_that_are_all_alike_give_an_effect_without_a_test() -> None:
    one = np.array([[[0.5, 0.4], [0.3, 0.2]]])
    for outcomes in (one, np.repeat(one, 3, axis=0)):
        effect = factor_effects(outcomes, contrasts(TWO))[0]
        assert effect.interval == pytest.approx((-0.2, -math.inf, math.inf))
        assert effect.simultaneous == effect.interval
        assert (effect.p, effect.p_adjusted) == (None, None)


def simulated(seeds: int, cells: np.ndarray, slope: float, rng: np.random.Generator) -> np.ndarray:
    """A study: the cells' means, a seed's own level, and its own response to the first factor."""
    shape = (seeds, *cells.shape)
    own = rng.normal(0, slope, (seeds, 1, *[1] * (cells.ndim - 1)))
    respond = np.concatenate([-own / 2, own / 2], axis=1)
    level = rng.normal(0, 0.1, (seeds, *[1] * cells.ndim))
    return cells + level + respond + rng.normal(0, 0.03, shape)


def pooled_interval(outcomes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The analysis of variance of a randomized block design: one error for all contrasts."""
    seeds = len(outcomes)
    flat = outcomes.reshape(seeds, -1)
    rest = flat - flat.mean(0) - flat.mean(1, keepdims=True) + flat.mean()
    free = (seeds - 1) * (flat.shape[1] - 1)
    error = np.sqrt((rest**2).sum() / free * (weights**2).sum() / seeds)
    mean = float((outcomes.mean(0) * weights).sum())
    half = float(stats.t.ppf(0.975, free) * error)
    return mean - half, mean + half


@pytest.mark.parametrize("slope", [0.0, 0.06], ids=["alike", "unlike"])
def test_intervals_cover_however_unlike_seeds_respond_and_those_of_a_pooled_error_do_not(
    slope: float,
) -> None:
    rng = np.random.default_rng(7)
    cells = np.add.outer(np.add.outer([0.5, 0.45], [0.0, 0.02]), [0.0, 0.0])
    wanted = contrasts(THREE)
    true = [float((c.weights * cells).sum()) for c in wanted]
    alone, together, pooled = np.zeros(len(wanted)), 0, 0
    for _ in range(STUDIES):
        outcomes = simulated(4, cells, slope, rng)
        effects = factor_effects(outcomes, wanted)
        alone += [e.interval.low <= t <= e.interval.high for e, t in zip(effects, true, strict=True)]
        main = zip(effects[:3], true, strict=False)
        together += all(e.simultaneous.low <= t <= e.simultaneous.high for e, t in main)
        low, high = pooled_interval(outcomes, wanted[0].weights)
        pooled += low <= true[0] <= high
    assert all(inside_binomial(int(count), 0.95) for count in alone)
    assert together >= stats.binom.ppf(0.0005, STUDIES, 0.95)
    assert inside_binomial(pooled, 0.95) == (slope == 0)
    assert pooled < 0.8 * STUDIES or slope == 0


def test_of_all_claims_with_a_margin_at_most_one_study_in_twenty_makes_a_wrong_one() -> None:
    """Effects of nothing invite a wrong "higher", those of exactly the margin a wrong "within"."""
    rng, margin = np.random.default_rng(11), 0.05
    cells = np.add.outer(np.add.outer([0.5, 0.5], [0.0, margin]), [0.0, margin])
    wanted = [c for c in contrasts(THREE) if len(c.steps) == 1]
    wrong = 0
    for _ in range(STUDIES):
        nothing, *at_margin = factor_effects(simulated(5, cells, 0.02, rng), wanted, margin)
        different = nothing.p_adjusted is not None and nothing.p_adjusted <= 0.05
        wrong += different or any(
            -margin < e.simultaneous.low and e.simultaneous.high < margin for e in at_margin
        )
    assert wrong <= stats.binom.ppf(0.9995, STUDIES, 0.05)
