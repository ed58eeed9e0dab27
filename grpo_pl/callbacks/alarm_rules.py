"""Rules that find a failing run by its metrics: each alarm reads the rows of `metrics.csv`."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import ClassVar, final

from typing_extensions import override

from grpo_pl.system.refusal import ArgumentError

Row = Mapping[str, float]
"""The metrics of one iteration; what was not measured is missing, and a number may be NaN."""
COLUMN = "alarm/"


class Alarm(ABC):
    """A failure that the metrics show.

    `alarm/<name>` in `metrics.csv` is 1 in each iteration in which it holds. The name is that of the class.
    """

    stop: bool = False
    """Whether the run ends when it begins to hold."""
    advice: ClassVar[str]
    """Its meaning, and remedies."""
    least: ClassVar[Mapping[str, float]] = {"window": 1}
    """The smallest value that each of these settings may have."""

    def __post_init__(self) -> None:
        for key, bound in self.least.items():
            if not (value := getattr(self, key)) >= bound:
                raise ArgumentError(f"{key}={value}: expected {bound} or more")

    @property
    def name(self) -> str:
        """As in `entropy_collapse`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()

    @abstractmethod
    def check(self, rows: Sequence[Row]) -> str | None:
        """The failure in the last of the rows, with its numbers; None if there is none."""


def lasting(rows: Sequence[Row], key: str, window: int) -> list[float]:
    """A metric in each of the last iterations; empty unless it is finite in all of them."""
    values = [row.get(key, math.nan) for row in rows[-window:]]
    return values if len(values) == window and all(map(math.isfinite, values)) else []


class Threshold(Alarm):
    """A metric beyond a bound in each of the last `window` iterations."""

    metric: ClassVar[str]
    window: int

    @override
    def check(self, rows: Sequence[Row]) -> str | None:
        values = lasting(rows, self.metric, self.window)
        return self.judge(values) if values else None

    @abstractmethod
    def judge(self, values: list[float]) -> str | None:
        """The failure in the metric's values in the last `window` iterations; None if there is none."""


@final
@dataclass(frozen=True)
class EntropyCollapse(Threshold):
    """The policy is certain of nearly every token, so that all responses to a prompt are alike.

    DAPO, arXiv:2503.14476, section 3.1, sees it in the first hundreds of steps of GRPO, and widens the upper
    clip bound against it.

    Args:
        below: Entropy in nats a token, mean over the response tokens of an iteration.
        window: Iterations that it must stay below.
        stop: Whether the run ends.
    """

    advice: ClassVar[str] = (
        "the policy explores no more: try model.loss.clip_high 0.28, model.entropy EntropyBonus, a higher "
        "data.sampling.temperature, a lower model.optimizer.lr"
    )
    metric: ClassVar = "train/entropy"
    least: ClassVar = {"below": 0, "window": 1}
    below: float = 0.02
    window: int = 5
    stop: bool = False

    @override
    def judge(self, values: list[float]) -> str | None:
        if (highest := max(values)) >= self.below:
            return None
        return f"train/entropy was at most {highest:.3g} in {self.window} iterations (below {self.below:g})"


@final
@dataclass(frozen=True)
class KLExplosion(Threshold):
    """The policy has left the reference.

    A nat for each token is far: in arXiv:2210.10760 (Gao et al. 2022, figure 1) the true reward of whole
    responses peaks at a few tens of nats each.

    Args:
        above: Estimated KL divergence from the reference in nats a token.
        window: Iterations whose median must be above, for a k3 estimate has outliers.
        stop: Whether the run ends.
    """

    advice: ClassVar[str] = (
        "the policy has left the reference: try model.kl.bound 10 against outliers, a higher "
        "model.kl.coefficient, a lower model.optimizer.lr, trainer.gradient_clip_val 1, or a "
        "model.reference_update"
    )
    metric: ClassVar = "train/kl"
    least: ClassVar = {"above": 0, "window": 1}
    above: float = 1.0
    window: int = 5
    stop: bool = False

    @override
    def judge(self, values: list[float]) -> str | None:
        if median(values) <= self.above:
            return None
        bound = f"above {self.above:g} in the median of {self.window} iterations"
        return f"train/kl is {values[-1]:.3g} ({bound})"


@final
@dataclass(frozen=True)
class NoSignal(Alarm):
    """All rewards are equal, or those in each group, or there are none: nothing can be learned from them.

    Args:
        share: Share of the groups without signal.
        window: Iterations that it must last.
        stop: Whether the run ends.
    """

    advice: ClassVar[str] = (
        "there is nothing to learn from: look at samples.jsonl whether model.rewards reads the answers; try "
        "easier or harder prompts, a larger data.group_size, data.resample DynamicSampling"
    )
    least: ClassVar = {"share": 0, "window": 1}
    share: float = 1.0
    window: int = 5
    stop: bool = False

    @override
    def check(self, rows: Sequence[Row]) -> str | None:
        silent = lasting(rows, "rollout/groups_without_signal", self.window)
        spread = lasting(rows, "rollout/reward_std", self.window)
        if silent and min(silent) >= self.share:
            what = f"at least {min(silent):.0%} of the groups had rewards without a difference"
        elif spread and max(spread) < 1e-8:
            what = "all rewards were equal"
        else:
            return None
        means = lasting(rows, "rollout/reward", self.window)
        reward = f"rollout/reward {means[-1]:.3g}" if means else "no reward was given"
        return f"{what} in {self.window} iterations ({reward})"


@final
@dataclass(frozen=True)
class AllTruncated(Threshold):
    """Nearly every response is cut at the token limit, so that hardly any can be right.

    Args:
        share: Share of the responses.
        window: Iterations that it must last.
        stop: Whether the run ends.
    """

    advice: ClassVar[str] = (
        "responses do not end: try a higher data.sampling.max_tokens, a reward for ending (LengthPenalty), "
        "and look at samples.jsonl whether they repeat themselves or lack the end-of-sequence token"
    )
    metric: ClassVar = "rollout/truncated"
    least: ClassVar = {"share": 0, "window": 1}
    share: float = 0.95
    window: int = 5
    stop: bool = False

    @override
    def judge(self, values: list[float]) -> str | None:
        if (lowest := min(values)) < self.share:
            return None
        return f"rollout/truncated was at least {lowest:.0%} in {self.window} iterations"


@final
@dataclass(frozen=True)
class MismatchGrowth(Alarm):
    """The engine's log-probabilities drift away from the trainer's, after which runs die.

    Seen even with a learning rate of 0: https://github.com/allenai/open-instruct/issues/1473.

    Args:
        factor: How many times the mismatch of the first iterations.
        floor: A mismatch in nats a token that is no cause for alarm, however it has grown.
        window: Iterations whose median is taken, of the first ones and of the last ones.
        stop: Whether the run ends.
    """

    advice: ClassVar[str] = (
        "engine and trainer no longer compute the same policy: try data.engine.dtype float32 or "
        "trainer.precision like the engine's, model.correction ImportanceCorrection, a lower "
        "data.engine.max_staleness"
    )
    least: ClassVar = {"factor": 1, "floor": 0, "window": 1}
    factor: float = 3.0
    floor: float = 0.05
    window: int = 5
    stop: bool = False

    @override
    def check(self, rows: Sequence[Row]) -> str | None:
        measured = [row for row in rows if math.isfinite(row.get("sync/logprob_mismatch", math.nan))]
        first = lasting(measured[: self.window], "sync/logprob_mismatch", self.window)
        last = lasting(rows, "sync/logprob_mismatch", self.window)
        if not first or not last or median(last) <= max(self.floor, self.factor * median(first)):
            return None
        return (
            f"sync/logprob_mismatch has grown from {median(first):.3g} to {median(last):.3g} nats a token "
            f"(medians of {self.window} iterations)"
        )


@final
@dataclass(frozen=True)
class RewardHacking(Alarm):
    """The training reward rises while the validation accuracy falls.

    The policy has found what the reward pays for beside the task; a run at https://github.com/huggingface/trl
    (issue 3018) ended with reward 1.0 and collapsed accuracy. The accuracy has fallen where its 95 % interval
    lies wholly below that of the best validation before, so that noise alone hardly ever raises the alarm.

    Args:
        rise: How much the mean reward must have risen since that validation, in standard deviations of the
            rewards of single responses.
        window: Iterations up to a validation over which rewards are averaged.
        validations: Validations in a row that must have fallen.
        stop: Whether the run ends.
    """

    advice: ClassVar[str] = (
        "the reward pays for something else than the task: compare samples.jsonl of both iterations; try a "
        "verifier among model.rewards, a higher model.kl.coefficient, and go on from the better checkpoint"
    )
    least: ClassVar = {"rise": 0, "window": 1, "validations": 1}
    rise: float = 0.2
    window: int = 3
    validations: int = 2
    stop: bool = False

    @override
    def check(self, rows: Sequence[Row]) -> str | None:
        names = sorted({key for row in rows for key in row if f"{key}_low" in row and "@" not in key})
        return next(filter(None, (self._fallen(rows, name) for name in names)), None)

    def _fallen(self, rows: Sequence[Row], name: str) -> str | None:
        low, high = f"{name}_low", f"{name}_high"
        measured = [i for i, row in enumerate(rows) if math.isfinite(row.get(low, math.nan))]
        before, after = measured[: -self.validations], measured[-self.validations :]
        if not before:
            return None
        best, now = max(before, key=lambda i: rows[i][low]), after[-1]
        then, since = self._rewards(rows, best), self._rewards(rows, now)
        spread = [row["rollout/reward_std"] for row in then if "rollout/reward_std" in row]
        if not spread or not since or any(rows[i][high] >= rows[best][low] for i in after):
            return None
        old, new = (fmean(row["rollout/reward"] for row in some) for some in (then, since))
        if not new - old > self.rise * fmean(spread):
            return None
        accuracies = " to ".join(
            f"{rows[i][name]:.3f} ({rows[i][low]:.3f} to {rows[i][high]:.3f})" for i in (best, now)
        )
        return (
            f"{name} has fallen from {accuracies} since iteration {rows[best]['iteration']:.0f}, and "
            f"rollout/reward has risen from {old:.3f} to {new:.3f}"
        )

    def _rewards(self, rows: Sequence[Row], validation: int) -> list[Row]:
        """The iterations up to a validation; after one before training, the first ones."""
        start = max(validation - self.window, 0) + 1
        return [row for row in rows[start : start + self.window] if "rollout/reward" in row]


def onsets(rows: Sequence[Row]) -> dict[float, list[str]]:
    """Iteration -> the names of the alarms that began to hold in it."""
    names: dict[float, list[str]] = {}
    for before, row in zip([{}, *rows], rows, strict=False):
        for key in sorted(row):
            if key.startswith(COLUMN) and row[key] == 1 and before.get(key) != 1:
                names.setdefault(row["iteration"], []).append(key.removeprefix(COLUMN))
    return names
