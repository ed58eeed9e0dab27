"""The cause of a difference between an engine's and the trainer's log-probabilities, by pure functions.

A gap is `sampling_logprob - logprob` of a sampled token, in nats. A hypothesis predicts every gap under the
assumption that one thing is wrong; the one that explains most of the gaps is the cause.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

FLOOR = 1e-4
"""Nats on average that float32 kernels may differ by; engines of the tests stay below a tenth of it."""
ROUNDINGS = 3.0
"""An engine may be off by so many times the rounding that the trainer measures on itself."""
BEYOND = 0.2
"""Nats at which a ratio of policies reaches the usual clip."""
SCALE = 0.3
"""The largest deviation from 1 of the scale with which a hypothesis fits best."""
CERTAINTY = 6.0
"""Standard errors of that scale that it must be away from 0."""


@dataclass(frozen=True)
class Cause:
    """A fault and its fix."""

    cause: str
    """One word or two; hypotheses with the same cause exclude each other."""
    found: str
    fix: str


@dataclass(frozen=True)
class Hypothesis(Cause):
    """A possible cause, with the gaps that it predicts."""

    gaps: Float[Tensor, "M"]


@dataclass(frozen=True)
class Attribution:
    """The causes of the gaps, the largest first, and the rest."""

    causes: tuple[Cause, ...]
    rest: float
    """Nats on average that no hypothesis explains."""
    tolerance: float
    """Nats on average that rounding explains."""


@dataclass(frozen=True)
class Summary:
    """Statistics of the absolute gaps, in nats."""

    mean: float
    p99: float
    most: float
    beyond: float
    """The share above `BEYOND`."""
    worst: int
    """The index of the largest one."""


def summarize(gaps: Float[Tensor, "M"]) -> Summary:
    """Mean, tail and maximum of |gap|."""
    size = gaps.abs()
    return Summary(
        mean=float(size.mean()),
        p99=float(size.quantile(0.99)),
        most=float(size.max()),
        beyond=float((size > BEYOND).float().mean()),
        worst=int(size.argmax()),
    )


def attribute(
    gaps: Float[Tensor, "M"],
    positions: Float[Tensor, "M"],
    hypotheses: Sequence[Hypothesis],
    rounding: float = 0.0,
) -> Attribution:
    """Find causes one after the other, each in the gaps that those before it leave.

    Args:
        gaps: The engine's log-probability of each sampled token, minus the trainer's in float32.
        positions: The position of each token in its response, from 0.
        hypotheses: The possible causes.
        rounding: Nats on average that the trainer's own log-probabilities change in the engine's dtype.
    """
    tolerance = max(FLOOR, ROUNDINGS * rounding)
    causes: list[Cause] = []
    rest, open_ = gaps, list(hypotheses)
    while float(rest.abs().mean()) > FLOOR and (best := likeliest(rest, open_)) is not None:
        causes.append(best)
        rest = rest - best.gaps
        open_ = [hypothesis for hypothesis in open_ if hypothesis.cause != best.cause]
    left = float(rest.abs().mean())
    if left > tolerance:
        causes.append(pattern(rest, positions, tolerance))
    return Attribution(tuple(causes), left, tolerance)


def likeliest(gaps: Float[Tensor, "M"], hypotheses: Sequence[Hypothesis]) -> Hypothesis | None:
    """The hypothesis that explains most; None if none explains more than chance would."""
    fitting = (h for h in hypotheses if fits(gaps, h.gaps))
    return max(fitting, key=lambda h: explained(gaps, h.gaps), default=None)


def explained(gaps: Float[Tensor, "M"], predicted: Float[Tensor, "M"]) -> float:
    """The share of the gaps' sum of squares that a prediction removes; negative if it adds to it."""
    return 1 - float((gaps - predicted).square().sum() / gaps.square().sum())


def fits(gaps: Float[Tensor, "M"], predicted: Float[Tensor, "M"]) -> bool:
    """Whether a prediction has the right size, beyond doubt, by the least-squares fit gaps = c * predicted.

    c must be near 1, and `CERTAINTY` of its standard errors, rms(gaps - c * predicted) / |predicted|, from 0.
    """
    size = float(predicted.square().sum())
    if size == 0:
        return False
    scale = float((gaps * predicted).sum()) / size
    error = float((gaps - scale * predicted).square().mean()) ** 0.5 / size**0.5
    return abs(scale - 1) < SCALE and scale > CERTAINTY * error


def pattern(gaps: Float[Tensor, "M"], positions: Float[Tensor, "M"], tolerance: float) -> Cause:
    """The cause that the positions of unexplained gaps in their responses suggest."""
    size, first = gaps.abs(), positions == 0
    half = positions >= positions.float().quantile(0.5)
    if average(size, first) > tolerance >= average(size, ~first):
        return Cause(
            "prompt",
            f"only the first token of each response is off, by {average(size, first):.2g} nats",
            "data.engine must read the prompt's token ids as they are, with the newest weights: forget the "
            "prefix cache in load_weights, and send token ids, not text",
        )
    if average(size, half) > 4 * average(size, ~half):
        return Cause(
            "position",
            f"it grows along a response, from {average(size, ~half):.2g} to {average(size, half):.2g} nats",
            "compare the engine's rope scaling, sliding window and cache dtype with the model's config.json: "
            "take kv_cache_dtype and hf_overrides out of data.engine.engine_args",
        )
    return Cause(
        "unexplained",
        f"{float(size.mean()):.2g} nats on average have no cause that is known here (rounding: at most "
        f"{tolerance:.2g})",
        "--data.engine.dtype float32 tells whether it is rounding, --data.engine InProcessEngine whether "
        "it is the engine; model.correction ImportanceCorrection limits the damage meanwhile",
    )


def average(values: Float[Tensor, "M"], where: Bool[Tensor, "M"]) -> float:
    """The mean of the selected values; 0 if none is."""
    return float(values[where].mean()) if bool(where.any()) else 0.0


def by_position(gaps: Float[Tensor, "M"], positions: Float[Tensor, "M"]) -> tuple[float, float, float]:
    """Mean |gap| of first tokens, of the other positions in the first half, and of the second half."""
    size, half = gaps.abs(), positions >= positions.float().quantile(0.5).clamp(min=1)
    return average(size, positions == 0), average(size, ~half & (positions > 0)), average(size, half)
