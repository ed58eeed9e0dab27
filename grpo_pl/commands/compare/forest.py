"""The forest plot of a study's answers: what each question changes in the metric, in time and in memory."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from grpo_pl.commands.compare.answers import Answer, name_of
from grpo_pl.commands.compare.comparison import Comparison
from grpo_pl.commands.compare.figures import Palette, Picture
from grpo_pl.commands.compare.panels import readable, shortened
from grpo_pl.commands.compare.statistics import Interval

WIDTH, HEAD, ROW = 3.4, 1.0, 0.42
"""Inches: narrow, so that its text is as large as the page's on a phone."""
LONGEST = 46
"""Characters of a question above its interval."""
Rows = Sequence[tuple[Answer, Interval | None]]


def forest(comparison: Comparison, answers: Sequence[Answer]) -> list[Picture]:
    """The metric, training time and memory, where they were measured, with a row for each answer."""
    name = readable(comparison.metric)
    colors = {group.name: i for i, group in enumerate(comparison.groups)}
    alone = [answer for answer in answers if answer.kind != "interaction"]
    gains = [(answer, answer.gain) for answer in answers]
    panels: list[tuple[str, str, Rows, float, float | None]] = [
        (f"{name}: change", "difference (0: no change)", gains, 0.0, comparison.margin),
        ("training time: change", "times as long (1: no change)", [(a, a.time) for a in alone], 1.0, None),
        ("peak memory: change", "times as much (1: no change)", [(a, a.memory) for a in alone], 1.0, None),
    ]
    return [
        panel(title, x, rows, colors, null, margin)
        for title, x, rows, null, margin in panels
        if any(interval is not None for _, interval in rows)
    ]


def panel(
    title: str,
    x: str,
    rows: Rows,
    colors: dict[str, int],
    null: float,
    margin: float | None,
) -> Picture:
    """One panel: the question above its interval, a line where nothing changes, the margin as a band."""

    def draw(axes: Axes, palette: Palette) -> None:
        if margin is not None:
            axes.axvspan(-margin, margin, color=palette.text, alpha=0.1, linewidth=0)
        axes.grid(visible=False)
        for i, (answer, interval) in enumerate(rows):
            axes.plot([null, null], [i - 0.2, i + 0.45], color=palette.text, linewidth=1, alpha=0.6)
            style = palette.line(colors[answer.variant]) if answer.variant else {"marker": "o"}
            style = {"color": palette.text} | style
            if interval is not None:
                draw_row(
                    axes, interval, i, style, filled=answer.verdict not in (None, "not settled") or null == 1
                )
            label = shortened(name_of(answer), LONGEST)
            where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
            axes.text(0.0, i - 0.36, label, color=palette.text, **where)
        axes.set_xlim(*limits([interval for _, interval in rows], null, margin))
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))

    return Picture(title, x, "", draw, WIDTH, HEAD + ROW * len(rows))


def draw_row(axes: Axes, interval: Interval, row: int, style: dict[str, Any], *, filled: bool) -> None:
    """An estimate, filled if it is settled, with its interval, where there is one."""
    color = style["color"]
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        axes.plot([interval.low, interval.high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
    mark = {"marker": style["marker"], "markersize": 6.5, "markeredgewidth": 1.5}
    face = color if filled else "none"
    axes.plot([interval.mean], [row], color=color, markerfacecolor=face, **mark)


def limits(intervals: Sequence[Interval | None], null: float, margin: float | None) -> tuple[float, float]:
    """The range that shows the intervals, the line and the band."""
    ends = [end for interval in intervals if interval is not None for end in interval if math.isfinite(end)]
    ends += [null, *([] if margin is None else [-margin, margin])]
    if null == 1:  # ratios of 0.98 and 1.02 are to look like no change
        ends += [0.9, 1.1]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room
