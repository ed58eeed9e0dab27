"""Main effects and interactions of factors, as pure functions of the outcomes of all their combinations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from grpo_pl.commands.compare.statistics import LEVEL, Estimate, Interval, crossed, holm, of_means


class Step(NamedTuple):
    """A level of a factor, as opposed to the factor's base level."""

    factor: str
    level: str
    base: str


class Contrast(NamedTuple):
    """A main effect (one step) or an interaction (two) as a weighted sum over all combinations of levels."""

    steps: tuple[Step, ...]
    weights: Float[np.ndarray, "*levels"]


@dataclass(frozen=True)
class FactorEffect:
    """A contrast, estimated from complete blocks: seeds that all combinations have."""

    steps: tuple[Step, ...]
    by_seed: tuple[float, ...]
    """The contrast in each block."""
    interval: Interval
    """Of this effect alone; unbounded where nothing varies."""
    simultaneous: Interval
    """Holds for all effects of its family at once, with 95 %."""
    p: float | None
    """The p of the two-sided test; None where nothing varies."""
    p_adjusted: float | None
    """`p`, adjusted for its family: Holm's, or Bonferroni's where a margin is declared."""


def contrasts(factors: Mapping[str, Sequence[str]], highest: int = 2) -> list[Contrast]:
    """The contrasts of every level to its factor's base level, main effects before interactions.

    The main effect of a level is the mean over all combinations of the other factors of (level - base). The
    interaction of two levels is that mean of (both - first alone - second alone + neither): what the second
    one adds to the effect of the first. For factors of two levels it is twice what textbooks of 2^k designs
    call the interaction (Box, Hunter & Hunter, Statistics for Experimenters, ch. 5), and the difference of
    differences of everybody else.

    Args:
        factors: Factor -> its levels, the base first.
        highest: The most factors in an interaction.
    """
    found = []
    for order in range(1, min(highest, len(factors)) + 1):
        for chosen in combinations(factors, order):
            for levels in product(*(factors[factor][1:] for factor in chosen)):
                steps = tuple(
                    Step(factor, level, factors[factor][0])
                    for factor, level in zip(chosen, levels, strict=True)
                )
                found.append(Contrast(steps, weights(factors, dict(zip(chosen, levels, strict=True)))))
    return found


def weights(factors: Mapping[str, Sequence[str]], chosen: Mapping[str, str]) -> Float[np.ndarray, "*levels"]:
    """The product of (level - base) over the chosen factors and of the mean over the others."""
    product_so_far = np.ones(())
    for factor, levels in factors.items():
        along = np.full(len(levels), 1 / len(levels))
        if factor in chosen:
            along = np.array([float(level == chosen[factor]) for level in levels])
            along[0] = -1.0
        product_so_far = np.multiply.outer(product_so_far, along)
    return product_so_far


def factor_effects(
    outcomes: Float[np.ndarray, "seeds *levels"],
    wanted: Sequence[Contrast],
    margin: float | None = None,
    on_problems: Float[np.ndarray, "seeds *levels P"] | None = None,
) -> list[FactorEffect]:
    """Estimate and test contrasts: over problems and seeds, or with one value a seed and Student's t.

    A seed is a block: what it adds to all combinations alike is in no contrast. The error is not pooled over
    contrasts, as in the analysis of variance of a randomized block design: where seeds respond to one factor
    more unlike than to another, such intervals do not cover (tests/commands/compare/test_factorial.py).

    Main effects are one family and interactions another. With a margin, two claims can be made of an effect:
    that it is not 0, and that it is within the margin. Both then go by the simultaneous interval, so that all
    claims of a family are right at once with 95 %; Holm's step-down does not give that for both.

    Args:
        outcomes: The metric of each seed at each combination of levels.
        wanted: From `contrasts`.
        margin: The largest difference that does not matter; None declares none.
        on_problems: The same outcomes on each validation problem; None tests over seeds alone.
    """
    values = [tuple(float(np.sum(c.weights * block)) for block in outcomes) for c in wanted]
    estimates = [estimate_of(c, v, on_problems) for c, v in zip(wanted, values, strict=True)]
    families: dict[int, list[int]] = {}
    for i, contrast in enumerate(wanted):
        families.setdefault(len(contrast.steps), []).append(i)
    found: dict[int, FactorEffect] = {}
    for family in families.values():
        tests = {i: float(estimates[i].p_of()) for i in family if estimates[i].tested}
        many = max(len(tests), 1)
        ps = list(tests.values())
        adjusted = dict(zip(tests, [min(many * p, 1.0) for p in ps] if margin else holm(ps), strict=True))
        for i in family:
            alone, together = (estimates[i].interval(1 - LEVEL / n) for n in (1, many))
            found[i] = FactorEffect(
                wanted[i].steps, values[i], alone, together, tests.get(i), adjusted.get(i)
            )
    return [found[i] for i in range(len(wanted))]


def estimate_of(
    contrast: Contrast, values: Sequence[float], on_problems: Float[np.ndarray, "seeds *levels P"] | None
) -> Estimate:
    """A contrast over problems and seeds, or over its values of the seeds."""
    if on_problems is None or len(on_problems) < 2:
        return of_means(np.array(values))
    return crossed(np.tensordot(contrast.weights, np.moveaxis(on_problems, 0, -2), contrast.weights.ndim))
