"""How often the statistics of `compare` are right: thousands of made-up studies with a known effect.

  python tools/coverage.py [--studies 2000] [--problems 200] [--seeds [3,5,20]] [--out FILE.md]

Each study has a base and a variant, the same seeds and problems for both, and a verdict on each problem of
each run. A problem is solved where a normal variable is above a threshold: the sum of the problem's
difficulty, of what the seed adds, of what this seed and this problem add under the variant, and of noise.
So the true difference of accuracies is known exactly, Phi(mu' / sd') - Phi(mu / sd), for new seeds and new
problems. Tables show, for each method, the share of studies whose 95 % interval covers it, and the share
with p < 0.05 (a false alarm where there is no effect); for the method that reports use also the share of
studies called equivalent within 0.03, a false claim where the effect is 0.03.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout need not be installed

import numpy as np
from scipy import stats

from grpo_pl.commands.compare.statistics.bootstrap import (
    crossed_bootstrap,
    iqm_interval,
    percentiles,
    probability_of_improvement,
)
from grpo_pl.commands.compare.statistics.crossed import crossed, of_means, satterthwaite
from grpo_pl.config.parser import Parser
from grpo_pl.system.refusal import fail

LEVEL, MARGIN = 0.05, 0.03
FAR = LEVEL / 8
"""What Bonferroni's adjustment for eight comparisons asks for."""
DIFFICULTY, SEED = 1.5, 0.1
"""Standard deviations of problems and of seeds that base and variant share, where the noise has 1."""
RESAMPLES, AT_ONCE = 400, 250
HEADER = "seeds", "accuracy", "effect", "per problem", "per seed"


@dataclass(frozen=True)
class Setting:
    """What the studies of a row are like."""

    seeds: int
    accuracy: float
    effect: float
    of_problems: float
    """Standard deviation of what a problem adds under each variant alone."""
    of_seeds: float
    """Standard deviation of what a seed adds under each variant alone."""

    @property
    def cells(self) -> list[str]:
        """Its columns."""
        return [
            str(self.seeds),
            f"{self.accuracy:g}",
            f"{self.effect:g}",
            f"{self.of_problems:g}",
            f"{self.of_seeds:g}",
        ]

    def thresholds(self) -> tuple[float, float]:
        """What is subtracted from the normal variables of base and variant."""
        spread = np.sqrt(1 + DIFFICULTY**2 + SEED**2 + self.of_problems**2 + self.of_seeds**2)
        base, variant = (-spread * stats.norm.ppf(self.accuracy + e) for e in (0.0, self.effect))
        return float(base), float(variant)

    def differences(self, studies: int, problems: int, noise: np.random.Generator) -> np.ndarray:
        """Verdicts of the variant minus those of the base, [studies, seeds, problems]."""

        def normal(*shape: int) -> np.ndarray:
            return noise.standard_normal((studies, *shape), dtype=np.float32)

        shared = DIFFICULTY * normal(1, problems) + SEED * normal(self.seeds, 1)
        solved = []
        for threshold in self.thresholds():
            own = self.of_problems * normal(1, problems) + self.of_seeds * normal(self.seeds, 1)
            solved.append(shared + own + normal(self.seeds, problems) > threshold)
        return np.asarray(solved[1].astype(np.float32) - solved[0])


@dataclass(frozen=True)
class Found:
    """The outcome of one method in each study."""

    covered: np.ndarray
    alarmed: np.ndarray


def over_seeds(differences: np.ndarray, effect: float) -> Found:
    """Student's t over seeds."""
    estimate = of_means(differences.mean(-1, dtype=np.float64))
    return Found(estimate.p_of(effect) >= LEVEL, estimate.p_of() < LEVEL)


def over_problems(differences: np.ndarray, effect: float) -> Found:
    """Student's t over the problems' means over seeds."""
    estimate = of_means(differences.mean(-2, dtype=np.float64))
    return Found(estimate.p_of(effect) >= LEVEL, estimate.p_of() < LEVEL)


def bootstrapped(differences: np.ndarray, effect: float) -> Found:
    """Percentiles of the bootstrap over seeds and problems."""
    low, high = percentiles(crossed_bootstrap(differences, RESAMPLES))
    return Found((low <= effect) & (effect <= high), (low > 0) | (high < 0))


def by_satterthwaite(differences: np.ndarray, effect: float) -> Found:
    """The random-effects model with Satterthwaite's degrees of freedom."""
    mean, error, df = satterthwaite(differences.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        ps = [np.where(error > 0, 2 * stats.t.sf(abs(mean - x) / error, df), 1.0) for x in (effect, 0.0)]
    return Found(ps[0] >= LEVEL, ps[1] < LEVEL)


def by_mixture(differences: np.ndarray, effect: float) -> Found:
    """The random-effects model with a mixture of t distributions: what reports use."""
    estimate = crossed(differences.astype(np.float64))
    return Found(estimate.p_of(effect) >= LEVEL, estimate.p_of() < LEVEL)


METHODS: dict[str, Callable[[np.ndarray, float], Found]] = {
    "seeds alone": over_seeds,
    "problems alone": over_problems,
    "crossed bootstrap": bootstrapped,
    "Satterthwaite": by_satterthwaite,
    "crossed": by_mixture,
}


@dataclass(frozen=True)
class Row:
    """The rates of each method in the studies of a setting."""

    setting: Setting
    coverage: dict[str, float]
    alarms: dict[str, float]
    equivalent: float


def simulate(setting: Setting, studies: int, problems: int, seed: int = 0) -> Row:
    """Analyse made-up studies with each method."""
    parts = setting.seeds, *(int(1000 * x) for x in vars(setting).values())
    noise = np.random.default_rng([seed, *parts])
    covered: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    alarmed: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    equivalent = []
    for start in range(0, studies, AT_ONCE):
        differences = setting.differences(min(AT_ONCE, studies - start), problems, noise)
        for name, method in METHODS.items():
            found = method(differences, setting.effect)
            covered[name].append(found.covered)
            alarmed[name].append(found.alarmed)
        equivalent.append(crossed(differences.astype(np.float64)).p_outside(MARGIN) < LEVEL)
    coverage, alarms = ({n: share(v) for n, v in each.items()} for each in (covered, alarmed))
    return Row(setting, coverage, alarms, share(equivalent))


def share(parts: Sequence[np.ndarray]) -> float:
    """The share of studies."""
    return float(np.concatenate(parts).mean())


def settings(seeds: Sequence[int]) -> Iterator[Setting]:
    """All combinations."""
    for n, accuracy, effect, problem, seed in product(
        seeds, (0.3, 0.95), (0.0, MARGIN), (0.0, 0.5), (0.0, 0.15)
    ):
        yield Setting(n, accuracy, effect, problem, seed)


# --------------------------------------------------------------------------------------- measures over seeds


def measures(seeds: int, studies: int) -> tuple[float, float]:
    """Coverage of the intervals of the interquartile mean and of the probability of improvement."""
    noise = np.random.default_rng([1, seeds])
    means = improvements = 0
    truth = float(stats.norm.cdf(0.5 / np.sqrt(2)))
    for _ in range(studies):
        base, variant = noise.normal(0, 1, seeds), noise.normal(0.5, 1, seeds)
        low, high = iqm_interval(base.tolist())[1:]
        means += low <= 0 <= high
        low, high = probability_of_improvement(variant.tolist(), base.tolist())[1:]
        improvements += low <= truth <= high
    return means / studies, improvements / studies


# --------------------------------------------------------------------------------------------------- far out


def far_out(seeds: int, share_of_problems: float, studies: int = 400_000) -> tuple[float, float]:
    """Shares of normal studies without an effect that have p < FAR: by Satterthwaite, and by the mixture.

    Of the variance of the mean, a share comes from problems, so many that it is known; the rest is estimated
    from the seeds.
    """
    noise = np.random.default_rng([2, seeds, int(1000 * share_of_problems)])
    of_seeds = (1 - share_of_problems) * noise.chisquare(seeds - 1, studies) / (seeds - 1)
    error2 = of_seeds + share_of_problems
    t = np.abs(noise.standard_normal(studies)) / np.sqrt(error2)
    alone = 2 * stats.t.sf(t, (seeds - 1) * (error2 / of_seeds) ** 2)
    weight = of_seeds / error2
    mixed = 2 * (weight * stats.t.sf(t, seeds - 1) + (1 - weight) * stats.norm.sf(t))
    return float((alone < FAR).mean()), float((mixed < FAR).mean())


# ----------------------------------------------------------------------------------------------------- tables


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---:"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def report(rows: Sequence[Row], over_runs: dict[int, tuple[float, float]]) -> str:
    """The tables."""
    coverage = [[*r.setting.cells, *(f"{x:.3f}" for x in r.coverage.values())] for r in rows]
    alarms = [
        [*r.setting.cells, *(f"{x:.3f}" for x in r.alarms.values()), f"{r.equivalent:.3f}"] for r in rows
    ]
    tails = [
        [str(n), f"{problems:g}", *(f"{x:.4f}" for x in far_out(n, problems))]
        for n, problems in product(over_runs, (0.02, 0.1, 0.3, 0.6))
    ]
    few = [[str(n), f"{iqm:.3f}", f"{improved:.3f}"] for n, (iqm, improved) in over_runs.items()]
    worst = []
    for name in METHODS:
        covered, alarmed = (
            [of[name] for of in each] for each in zip(*((r.coverage, r.alarms) for r in rows), strict=True)
        )
        false = [x for x, row in zip(alarmed, rows, strict=True) if not row.setting.effect]
        worst.append([name, *(f"{x:.3f}" for x in (min(covered), max(covered), max(false)))])
    return "\n".join(
        (
            "Least and greatest coverage of all settings, and most false alarms (nominal 0.95, 0.05):\n",
            table(("method", "least", "greatest", "false alarms"), worst),
            "Coverage of the 95 % interval:\n",
            table((*HEADER, *METHODS), coverage),
            "Share with p < 0.05, and called equivalent within 0.03 (one comparison):\n",
            table((*HEADER, *METHODS, "equivalent"), alarms),
            f"Share with p < {FAR:g} of normal studies without an effect, by the part of the variance of the "
            "mean that is the problems':\n",
            table(("seeds", "share of problems", "Satterthwaite", "crossed"), tails),
            "Coverage of 95 % bootstrap intervals over runs (normal, half a standard deviation apart):\n",
            table(("runs", "interquartile mean", "probability of improvement"), few),
        )
    )


def main(args: list[str] | None = None) -> None:
    """Simulate, and print the tables."""
    parser = Parser(description=__doc__, prog="tools/coverage.py")
    parser.add_argument("--studies", type=int, default=2000, help="for each setting")
    parser.add_argument("--problems", type=int, default=200, help="in the validation set")
    parser.add_argument("--seeds", type=list[int], default=[3, 5, 20])
    parser.add_argument("--out", type=Path, help="a file for the tables too")
    options = parser.parse_args(args)
    if options.studies < 1 or options.problems < 2 or min(options.seeds, default=0) < 2:
        fail("expected --studies of 1 or more, and --problems and --seeds of 2 or more")
    rows = [simulate(s, options.studies, options.problems) for s in settings(options.seeds)]
    text = report(rows, {n: measures(n, options.studies) for n in options.seeds})
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
