"""Pictures of a run: `curves.png`, and of a reward model `reliability.png`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from typing_extensions import override

from grpo_pl.callbacks.alarm_rules import onsets
from grpo_pl.runs.layout import METRICS_FILE, read_metrics
from grpo_pl.system.atomic_files import DiskFullError, room_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES_FILE = "curves.png"
RELIABILITY_FILE = "reliability.png"
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
"""Okabe and Ito's colours, told apart by colour-blind readers too."""

Rows = list[dict[str, float]]


class Curves(pl.Callback):
    """Draws `curves.png` into the run's folder when the run ends, also when it was interrupted.

    Args:
        draw: Whether to: half a second, which runs of a minute in a study can do without.
    """

    _started = False

    def __init__(self, draw: bool = True) -> None:
        self.draw = draw

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = True

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer)

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self._started and not isinstance(exception, DiskFullError):  # else they are another run's
            self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        metrics = Path(trainer.default_root_dir) / METRICS_FILE
        if self.draw and trainer.is_global_zero and metrics.exists():
            with room_for(path := metrics.with_name(CURVES_FILE)):
                draw_curves(read_metrics(metrics), path)


class Reliability(pl.Callback):
    """Draws `reliability.png` of a reward model into the run's folder after each validation."""

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        bins = pl_module.calibration.reliability()  # type: ignore[operator, union-attr]
        if trainer.is_global_zero:
            draw_reliability(bins, Path(trainer.default_root_dir) / RELIABILITY_FILE)


def draw_reliability(bins: list[tuple[float, float, int]], path: Path) -> None:
    """Draw how often events of a predicted probability occur; bins: (mean probability, frequency, events)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    predicted, observed, events = zip(*bins, strict=True) if bins else ((), (), ())
    diagram.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    diagram.plot(predicted, observed, color=BLUE, marker="o", label="this reward model", clip_on=False)
    diagram.set(ylim=(0, 1), ylabel="frequency")
    diagram.set_title("how often what is held for likely is true", loc="left", fontsize=11)
    diagram.legend(frameon=False)
    histogram.bar(predicted, events, width=0.06, color=ORANGE)
    histogram.set(xlim=(0, 1), xlabel="probability, by the reward model", ylabel="events")
    for axes in (diagram, histogram):
        _quiet(axes)
    figure.savefig(path, dpi=110)


MARGINS = {"left": 0.055, "right": 0.985, "bottom": 0.075, "top": 0.92, "wspace": 0.2, "hspace": 0.32}
"""Around the panels of `curves.png`: a layout engine would draw all of it once more, to measure it."""


def draw_curves(rows: Rows, path: Path) -> None:
    """Draw the rows of a `metrics.csv`, one panel a question."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5))
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3, sharex=True, gridspec_kw=MARGINS)
    for axes, (title, draw) in zip(panels.flat, PANELS.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=11, y=1, pad=20)
        _quiet(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
        draw(axes, rows)
        if not axes.has_data():
            axes.text(
                0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="grey"
            )
        if axes.get_legend_handles_labels()[0]:
            _legend(axes)
    for axes in panels[-1]:
        axes.set_xlabel("iteration")
    _onsets(panels.flat, rows)
    figure.savefig(path, dpi=110)


def _onsets(panels: "Sequence[Axes]", rows: Rows) -> None:
    """Mark in each panel where an alarm began to hold; its name stands in the first panel."""
    top = panels[0].get_xaxis_transform()
    for iteration, names in onsets(rows).items():
        for axes in panels:
            axes.axvline(iteration, color=VERMILION, linestyle=":", linewidth=1)
        panels[0].text(
            iteration, 0.98, ", ".join(names), transform=top, rotation=90, va="top", ha="right", fontsize=7,
            color=VERMILION,
        )  # fmt: skip


def _points(rows: Rows, *keys: str) -> list[list[float]]:
    measured = [row for row in rows if all(key in row for key in keys)]
    return [[row["iteration"] for row in measured], *([row[key] for row in measured] for key in keys)]


def _quiet(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: "Axes") -> None:
    """Place the legend between the panel and its title, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), borderaxespad=0, ncols=4, frameon=False, fontsize=8,
        handlelength=1.2, columnspacing=1.0,
    )  # fmt: skip


def _line(axes: "Axes", rows: Rows, *, key: str, color: str, band: str | None = None) -> None:
    x, y = _points(rows, key)
    if x:
        axes.plot(x, y, color=color, marker="o", markersize=3)
    if x and band is not None:
        x, y, spread = _points(rows, key, band)
        low, high = ([a + sign * b for a, b in zip(y, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0, label="one std over responses")


def _accuracy(axes: "Axes", rows: Rows) -> None:
    names = sorted({k for row in rows for k in row if f"{k}_low" in row and "@" not in k})
    for name, color in zip(names, (BLUE, ORANGE, GREEN, VERMILION, PURPLE), strict=False):
        x, y, low, high = _points(rows, name, f"{name}_low", f"{name}_high")
        axes.plot(x, y, color=color, marker="o", markersize=4, label=name.removeprefix("val/"), clip_on=False)
        label = "95 % interval" if name == names[-1] else None
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0, label=label)
        axes.set_ylim(0, 1)


def _stages(axes: "Axes", rows: Rows) -> None:
    stages = ("generate", "score", "update", "sync")
    x, *heights = _points(rows, *(f"time/{stage}_s" for stage in stages))
    bottom = [0.0] * len(x)
    for stage, color, height in zip(stages, (BLUE, ORANGE, GREEN, VERMILION), heights, strict=True):
        if x:
            axes.bar(x, height, bottom=bottom, color=color, label=stage, width=0.8)
        bottom = [a + b for a, b in zip(bottom, height, strict=True)]


PANELS: dict[str, Callable[["Axes", Rows], None]] = {
    "training reward": partial(_line, key="rollout/reward", color=BLUE, band="rollout/reward_std"),
    "validation accuracy": _accuracy,
    "KL to the reference (nats a token)": partial(_line, key="train/kl", color=VERMILION),
    "response length (tokens)": partial(_line, key="rollout/response_tokens", color=GREEN),
    "entropy (nats a token)": partial(_line, key="train/entropy", color=PURPLE),
    "seconds an iteration": _stages,
}
"""Title -> the function that draws the panel."""
