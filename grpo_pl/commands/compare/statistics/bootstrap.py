"""Bootstrap intervals: over seeds and problems at once, and rliable's measures over seeds."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from grpo_pl.commands.compare.statistics.over_seeds import CONFIDENCE, Interval

RESAMPLES = 2000


def crossed_bootstrap(
    differences: Float[np.ndarray, "*studies S P"], resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "*studies resamples"]:
    """Means of differences whose seeds and problems are drawn with replacement, each independently.

    The pigeonhole bootstrap (McCullagh 2000; Owen 2007). Its percentiles are an interval for new seeds and
    problems, too narrow with few seeds: findings/statistics.md.
    """
    seeds, problems = differences.shape[-2:]
    noise = np.random.default_rng(seed)
    weights = [
        noise.multinomial(n, np.full(n, 1 / n), size=resamples).astype(differences.dtype) / n
        for n in (seeds, problems)
    ]
    return np.asarray(np.einsum("...sb,bs->...b", differences @ weights[1].T, weights[0]))


def percentiles(
    draws: Float[np.ndarray, "*studies resamples"], confidence: float = CONFIDENCE
) -> Float[np.ndarray, "2 *studies"]:
    """The lower and upper end of the percentile interval."""
    return np.asarray(np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=-1))


def interquartile_mean(values: Float[np.ndarray, "*of n"]) -> Float[np.ndarray, "*of"]:
    """The mean of the middle half: a run that failed, or was lucky, moves it little (rliable's IQM).

    Agarwal et al. 2021, section 4.3; floor(n / 4) values are left out at each end, so that of three none is.
    """
    return np.asarray(stats.trim_mean(values, 0.25, axis=-1))


def iqm_interval(values: Sequence[float]) -> Interval:
    """The interquartile mean with its percentile bootstrap interval over runs; unbounded for one run."""
    mean = float(interquartile_mean(np.asarray(values)))
    return _bootstrapped(mean, (values,), lambda x, axis: interquartile_mean(np.moveaxis(x, axis, -1)))


def probability_of_improvement(values: Sequence[float], base: Sequence[float]) -> Interval:
    """The probability that a run is better than one of the base: ties count half (Agarwal et al. 2021, 4.3).

    The share of pairs of a run and a run of the base, whatever their seeds (Mann and Whitney's U / n m), with
    its stratified bootstrap interval: each group's runs are drawn among themselves. rliable averages it over
    tasks; here the validation set is one task.
    """
    mean = float(_wins(np.asarray(values), np.asarray(base), axis=-1))
    return _bootstrapped(mean, (values, base), _wins)


def _wins(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
    gaps = a[..., :, None] - b[..., None, :]
    return np.asarray(((gaps > 0) + 0.5 * (gaps == 0)).mean((-2, -1)))


def _bootstrapped(mean: float, groups: tuple[Sequence[float], ...], statistic: object) -> Interval:
    if min(map(len, groups)) < 2:
        return Interval(mean, -np.inf, np.inf)
    found = stats.bootstrap(
        groups,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))
