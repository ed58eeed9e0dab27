"""The pictures of a comparison."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from grpo_pl.commands.compare.comparison import Comparison
from grpo_pl.commands.compare.costs import MEMORY, STAGES, TIME, Cost, cost_of, pareto
from grpo_pl.commands.compare.curves import Curve, curve, range_of_runs
from grpo_pl.commands.compare.figures import Palette, Picture
from grpo_pl.commands.compare.runs import SECONDS, TOKENS
from grpo_pl.commands.compare.statistics import Interval

ALONG = (
    (None, "iterations", "iteration"),
    (TOKENS, "tokens", "response tokens generated so far"),
    (SECONDS, "seconds", "seconds of training so far, without validation"),
)
MOST_LINES = 40
"""Runs in a picture; the single lines of more would hide the means."""
PATHS = (
    ("train/kl", "KL to the reference", "nats a token"),
    ("train/entropy", "entropy", "nats a token"),
    ("train/clip_fraction", "clipped", "share of tokens"),
    ("train/clip_fraction_positive", "clipped, advantage above 0", "share of tokens"),
    ("train/clip_fraction_negative", "clipped, advantage below 0", "share of tokens"),
    ("train/effective_sample_size", "effective sample size", "share of tokens"),
    ("rollout/response_tokens", "response length", "tokens"),
    ("rollout/truncated", "truncated", "share of responses"),
    ("rollout/groups_without_signal", "groups without a signal", "share of groups"),
    ("sync/logprob_mismatch", "engine against trainer", "nats a token"),
    ("train/explained_variance", "critic: explained variance", "share"),
    ("train/padding", "padding", "share of positions"),
    ("train/grad_norm", "gradient norm", ""),
    ("gradient/policy_norm", "gradient of the policy term", "norm"),
    ("gradient/kl_norm", "gradient of the KL", "norm"),
    ("gradient/entropy_norm", "gradient of the entropy bonus", "norm"),
    ("gradient/value_norm", "value loss on the policy", "norm of the gradient"),
    ("gradient/value_critic_norm", "value loss on the critic", "norm of the gradient"),
    ("gradient/kl_policy_cosine", "KL against policy term", "cosine of gradients"),
    ("gradient/entropy_policy_cosine", "entropy against policy term", "cosine of gradients"),
    ("gradient/value_policy_cosine", "value against policy term", "cosine of gradients"),
)
"""Metric, title and unit: each becomes a picture where a run has measured it."""


def learning_curves(comparison: Comparison) -> list[Picture]:
    """The compared metric against iterations, tokens and seconds, and the training reward."""
    metric, name = comparison.metric, readable(comparison.metric)
    curves = [curves_picture(comparison, metric, f"{name} by {by}", name, along, x) for along, by, x in ALONG]
    reward = curves_picture(comparison, "rollout/reward", "training reward", "reward", None, "iteration")
    return [picture for picture in (*curves, reward) if picture is not None]


def paths(comparison: Comparison) -> list[Picture]:
    """The course of training: a picture for each quantity that a run has measured."""
    curves = (curves_picture(comparison, key, title, unit, None, "iteration") for key, title, unit in PATHS)
    return [picture for picture in curves if picture is not None]


def readable(metric: str) -> str:
    """`val/accuracy` -> `validation accuracy`."""
    return metric.replace("val/", "validation ").replace("_", " ")


def curves_picture(
    comparison: Comparison, metric: str, title: str, y: str, along: str | None, x: str
) -> Picture | None:
    """The curves of all groups for a metric; None where no run has measured it."""
    curves = [curve(group, metric, along) for group in comparison.groups]
    measured = [c for c in curves if c is not None]
    limits, drawn = range_of_runs(measured), sum(len(c.runs) for c in measured)
    if limits is None:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        for i, each in reversed(list(enumerate(curves))):
            if each is not None:
                draw_curve(axes, each, i, palette, each_run=drawn <= MOST_LINES)
        margin = 0.08 * (limits[1] - limits[0]) or 0.05
        axes.set_ylim(limits[0] - margin, limits[1] + margin)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=along is None))

    return Picture(title, x, y, draw)


def draw_curve(axes: Axes, curve: Curve, i: int, palette: Palette, *, each_run: bool) -> None:
    """The mean with its band, each seed thin if wanted, and unfinished runs dotted."""
    style = palette.line(i)
    color = style["color"]
    for x, y in curve.runs if each_run and len(curve.runs) > 1 else ():
        axes.plot(x, y, color=color, linewidth=0.6, alpha=0.45)
    for x, y in curve.unfinished:
        axes.plot(x, y, color=color, linewidth=0.8, alpha=0.8, linestyle=":")
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.13, linewidth=0)
    if len(curve.x):
        axes.plot(curve.x, curve.mean, markevery=max(len(curve.x) // 8, 1), **style)


def final_values(comparison: Comparison) -> Picture:
    """Each group's final values over seeds."""
    rows = [(r.group.name, list(r.by_seed.values()), r.over_seeds) for r in comparison.results]
    return intervals("last value, 95 % over seeds", readable(comparison.metric), rows)


def differences(comparison: Comparison) -> Picture:
    """Each group's paired difference from the base, with its interval."""
    base = comparison.results[0].by_seed
    rows = [
        (e.result.group.name, [e.result.by_seed[s] - base[s] for s in e.pairs], e.test.difference)
        for e in comparison.effects
    ]
    title = f"paired difference from {shortened(comparison.base.name)}"
    return intervals(title, f"difference of {readable(comparison.metric)}", rows, from_base=True)


def intervals(
    title: str, x: str, rows: list[tuple[str, list[float], Interval | None]], *, from_base: bool = False
) -> Picture:
    """A row for each group: its name, a ring for each seed, and mean and interval over them.

    Args:
        title: The picture's title.
        x: The label of the axis.
        rows: Name, values and interval, from top to bottom.
        from_base: Whether the values are differences from the base, which has no row itself.
    """

    def draw(axes: Axes, palette: Palette) -> None:
        if from_base:
            axes.axvline(0, color=palette.line(0)["color"], linewidth=1.2)
        for i, (_, values, interval) in enumerate(rows):
            style = palette.line(i + from_base)
            rings = {"s": 14, "facecolors": "none", "edgecolors": style["color"], "linewidths": 0.9}
            axes.scatter(values, [i + 0.2] * len(values), **rings)  # slightly below the group's line
            if interval is not None:
                draw_interval(axes, interval, i, style)
        name_rows(axes, [name for name, _, _ in rows])

    return Picture(title, x, "", draw)


def draw_interval(axes: Axes, interval: Interval, row: int, style: dict[str, Any]) -> None:
    """A mean with its interval, where there is one."""
    color = style["color"]
    if interval.low > float("-inf"):
        ends = [interval.low, interval.high]
        axes.plot(ends, [row, row], color=color, linewidth=2, alpha=0.7, solid_capstyle="butt")
    axes.plot([interval.mean], [row], color=color, marker=style["marker"], markersize=6)


def name_rows(axes: Axes, names: list[str]) -> None:
    """Order the rows from top to bottom and label them with the groups' names."""
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def shortened(name: str, limit: int = 22) -> str:
    """A name short enough for the picture."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def trade_offs(comparison: Comparison) -> list[Picture]:
    """Accuracy against memory and against time, each with its Pareto front."""
    return [picture for cost in (MEMORY, TIME) if (picture := trade_off(comparison, cost)) is not None]


def trade_off(comparison: Comparison, cost: Cost) -> Picture | None:
    """Accuracy against one cost; None where it was not measured."""
    points = [
        (i, paid, result.over_seeds)
        for i, result in enumerate(comparison.results)
        if (paid := cost_of(result.group, cost)) is not None and result.over_seeds is not None
    ]
    if not points:
        return None
    name = readable(comparison.metric)

    def draw(axes: Axes, palette: Palette) -> None:
        front = pareto([(paid, gain.mean) for _, paid, gain in points])
        axes.step(*zip(*front, strict=True), "--", where="post", color=palette.text, linewidth=0.8, alpha=0.5)
        for i, paid, gain in points:
            style = palette.line(i) | {"linestyle": "none", "markersize": 7, "elinewidth": 1.2}
            bounded = gain.low > float("-inf")
            ends = [[gain.mean - gain.low], [gain.high - gain.mean]] if bounded else None
            axes.errorbar([paid], [gain.mean], yerr=ends, ecolor=style["color"], **style)
        axes.margins(0.12)

    title = f"{name} against {cost.name}{' time' if cost is TIME else ''}"
    return Picture(title, f"{cost.name} ({cost.unit})", name, draw)


def stages(comparison: Comparison) -> Picture | None:
    """Seconds of an iteration by stage; None where none was measured."""
    seconds = {cost.name: [cost_of(group, cost) or 0.0 for group in comparison.groups] for cost in STAGES}
    if not any(map(any, seconds.values())):
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        left = np.zeros(len(comparison.groups))
        for (stage, widths), alpha in zip(seconds.items(), (0.2, 0.45, 0.3, 0.65), strict=True):
            rows = np.arange(len(left))
            axes.barh(rows, widths, 0.62, left=left, label=stage, color=palette.text, alpha=alpha)
            left += widths
        name_rows(axes, [group.name for group in comparison.groups])
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=4, frameon=False, fontsize=8, handlelength=1
        )
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=10, pad=20)

    return Picture("seconds of an iteration", "s, medians over iterations", "", draw)
