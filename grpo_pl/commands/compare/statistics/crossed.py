r"""Paired differences over problems and seeds, both of them samples of more.

The difference on problem p with seed s is taken for `d_sp = effect + seed_s + problem_p + rest_sp` with
independent random terms: the two-way random-effects model without replication (Searle, Casella, McCulloch
1992, chapter 4). The estimate of the effect is the mean, whose variance is

    Var = (sigma_seed^2 + sigma_rest^2 / P) / S + sigma_problem^2 / P.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from grpo_pl.commands.compare.statistics.over_seeds import CONFIDENCE, ROUNDING, Interval


class Components(NamedTuple):
    """The variances of the terms of a difference, by the ANOVA estimator; those below 0 are set to 0."""

    seed: float
    problem: float
    rest: float


class Estimate(NamedTuple):
    """An estimate with its standard error, and the distribution that its tests compare it with.

    `(mean - effect) / error` is taken for a mixture of Student's t distributions; the arrays have the shape
    of the studies that were analysed at once.
    """

    mean: Float[np.ndarray, "*studies"]
    error: Float[np.ndarray, "*studies"]
    """0 where nothing varies over seeds: then there is no test."""
    share: Float[np.ndarray, "*studies"]
    """The weight of the first distribution: the part of error^2 that more seeds would lower."""
    df: tuple[float, float]
    """The degrees of freedom of the two distributions, `S - 1` and `P - 1`."""

    @property
    def tested(self) -> bool:
        """Whether it has tests and intervals."""
        return bool(self.error > 0)

    def p_of(self, effect: float = 0.0) -> Float[np.ndarray, "*studies"]:
        """The p of the two-sided test that the effect is this one; 1 where there is no test."""
        return np.asarray(np.minimum(2 * self._tail(abs(self.mean - effect)), 1.0))

    def p_outside(self, margin: float) -> Float[np.ndarray, "*studies"]:
        """The p of the test that the effect is at least the margin in size, by two one-sided tests (TOST).

        A small one shows equivalence (Schuirmann 1987): the larger p of `effect <= -margin` and
        `effect >= margin`.
        """
        return np.asarray(np.maximum(self._tail(self.mean + margin), self._tail(margin - self.mean)))

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The effects that the two-sided test does not reject, of one study; unbounded without a test."""
        mean = float(self.mean)
        if not self.tested:
            return Interval(mean, -np.inf, np.inf)
        quantiles = [float(stats.t.isf((1 - confidence) / 2, df)) for df in set(self.df)]
        half = float(self.error) * solved(self._two_tails, 1 - confidence, min(quantiles), max(quantiles))
        return Interval(mean, mean - half, mean + half)

    def _two_tails(self, t: float) -> float:
        return float(2 * self._tail(np.asarray(t) * self.error))

    def _tail(self, distance: np.ndarray | np.floating) -> Float[np.ndarray, "*studies"]:
        """The probability of an estimate so far above the effect."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(self.error > 0, distance / self.error, -np.inf)
        of_seeds, of_problems = (stats.t.sf(t, df) for df in self.df)
        return np.asarray(self.share * of_seeds + (1 - self.share) * of_problems)


def solved(falling: "optimize._Function", value: float, low: float, high: float) -> float:
    """The place where a falling function has a value, between two places around it."""
    if high - low < ROUNDING:
        return low
    return float(optimize.brentq(lambda x: falling(x) - value, low - ROUNDING, high + ROUNDING))


def crossed(differences: Float[np.ndarray, "*studies S P"]) -> Estimate:
    r"""The mean of paired differences over `S >= 2` seeds and `P >= 2` problems, for new ones of both.

    With the mean squares of the analysis of variance, `error^2 = A + B`, `A = MS_seed / (S P)` and
    `B = max(MS_problem - MS_rest, 0) / (S P)`. A has S - 1 degrees of freedom, B nearly as many as there are
    problems. Satterthwaite's (1946) common degrees of freedom raise too many false alarms with few seeds,
    because a small A by chance passes for many of them (`satterthwaite`; findings/statistics.md). Instead the
    reference is a mixture of t with S - 1 and with P - 1, in the shares of A and B: exact where one of them
    is 0, rather too wide between, never too narrow. Cochran and Cox (1950) mix quantiles in the same way.

    Without variation over seeds there is no test, as nothing says how far away another seed would be.
    """
    seeds, problems = differences.shape[-2:]
    of_seeds, of_problems, _ = mean_squares(differences)
    total = of_seeds + of_problems
    error = np.where(np.sqrt(of_seeds) < ROUNDING, 0.0, np.sqrt(total))
    share = np.divide(of_seeds, total, out=np.ones_like(total), where=total > 0)
    return Estimate(np.asarray(differences.mean((-2, -1))), error, share, (seeds - 1, problems - 1))


def satterthwaite(
    differences: Float[np.ndarray, "*studies S P"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard error and degrees of freedom by Satterthwaite (1946); for comparison with `crossed`."""
    seeds, problems = differences.shape[-2:]
    of_seeds, of_problems, rest = mean_squares(differences)
    variance = of_seeds + of_problems
    parts = of_seeds**2 / (seeds - 1)
    parts += (of_problems > 0) * (of_problems + rest) ** 2 / (problems - 1)
    parts += (of_problems > 0) * rest**2 / ((seeds - 1) * (problems - 1))
    df = np.divide(variance**2, parts, out=np.full_like(variance, seeds - 1.0), where=parts > 0)
    return np.asarray(differences.mean((-2, -1))), np.asarray(np.sqrt(variance)), df


def mean_squares(differences: Float[np.ndarray, "*studies S P"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A and B of `crossed`, and `MS_rest / (S P)`: parts of the variance of the mean."""
    seeds, problems = differences.shape[-2:]
    assert min(seeds, problems) >= 2, "two seeds and two problems at least"
    seed = problems * differences.mean(-1).var(-1, ddof=1)
    problem = seeds * differences.mean(-2).var(-1, ddof=1)
    total = seeds * problems * differences.var((-2, -1))
    rest = (total - (seeds - 1) * seed - (problems - 1) * problem) / ((seeds - 1) * (problems - 1))
    rest = np.maximum(rest, 0.0)
    parts = seed, np.maximum(problem - rest, 0.0), rest
    a, b, c = (np.asarray(part / (seeds * problems)) for part in parts)
    return a, b, c


def components(differences: Float[np.ndarray, "S P"]) -> Components:
    """The variances over seeds, over problems, and of the rest: how many of each a study needs."""
    seeds, problems = differences.shape
    of_seeds, of_problems, rest = (float(part) for part in mean_squares(differences))
    return Components(max(of_seeds - rest, 0.0) * seeds, of_problems * problems, rest * seeds * problems)


def of_means(differences: Float[np.ndarray, "*studies n"]) -> Estimate:
    """The mean of differences that are one number each: Student's, for new seeds and these problems alone."""
    n = differences.shape[-1]
    spread = differences.std(-1, ddof=1) if n > 1 else np.zeros(differences.shape[:-1])
    error = np.where(spread < ROUNDING, 0.0, spread / np.sqrt(n))
    return Estimate(
        np.asarray(differences.mean(-1)), error, np.ones_like(error), (max(n - 1, 1), max(n - 1, 1))
    )
