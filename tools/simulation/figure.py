"""The figure of tools/simulate.py: small multiples, a column for each model."""

from collections.abc import Iterable
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from grpo_pl.callbacks.curves import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from simulation.cost import COLOCATED, DEDICATED, LAYOUTS, OVERLAPPED, Cost, Simulation
from simulation.findings import ALLOWED, IDLE, Costs, fastest, gpu_seconds, seconds, sync_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {COLOCATED: BLUE, DEDICATED: ORANGE, OVERLAPPED: GREEN}
NONE = "#E0E0E0"
SYNCS = {"colocated": (BLUE, "o"), "NCCL": (GREEN, "s"), "files": (VERMILION, "^")}
CAUSES = {
    "computing": ("black", "o"),
    "memory bandwidth": (BLUE, "s"),
    "longest response": (VERMILION, "^"),
    "uneven ranks in an update": (ORANGE, "v"),
    "latency of collectives": (PURPLE, "D"),
    IDLE: (GREEN, "P"),
}
MARKERS = {COLOCATED: "o", DEDICATED: "s", OVERLAPPED: "^"}


def draw(
    simulations: dict[str, Simulation], costs: dict[str, dict[int, Costs]], max_tokens: int, path: Path
) -> None:
    """Draw costs by model and max_tokens: time, winners, weight sync, and where the time goes."""
    rows = 3 + len(ALLOWED)
    figure = Figure(figsize=(2.2 + 2.6 * len(costs), 2.35 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, len(costs), squeeze=False)
    for row in panels[1:]:
        for axis in row[1:]:
            axis.sharey(row[0])
            axis.tick_params(labelleft=False)
    for column, (name, lengths) in enumerate(costs.items()):
        axes, here, simulation = panels[:, column], lengths[max_tokens], simulations[name]
        axes[0].set_title(f"{name} parameters", fontweight="bold")
        draw_times(axes[0], here)
        for axis, layouts in zip(axes[1:], ALLOWED.values(), strict=False):
            draw_winners(axis, lengths, layouts)
        draw_syncs(axes[-2], simulation, here)
        draw_shares(axes[-1], simulation, here[OVERLAPPED])
    at = f"\nat {max_tokens:,} max_tokens"
    titles = [f"seconds of an iteration{at}", *(f"fastest layout,\n{a}: max_tokens" for a in ALLOWED)]
    titles += [f"seconds of weight sync{at}", f"share of GPU time,\noverlapped{at}"]
    handles = [
        [line(layout, colour, MARKERS[layout]) for layout, colour in COLOURS.items()]
        + [Line2D([], [], color="grey", linestyle=":", label="linear")],
        *([*(Patch(color=COLOURS[a], label=a) for a in layouts), Patch(color=NONE, label="does not fit")]
          for layouts in ALLOWED.values()),
        [line(way, *style) for way, style in SYNCS.items()],
        [line(cause, *style) for cause, style in CAUSES.items()],
    ]  # fmt: skip
    for row, title, labels in zip(panels, titles, handles, strict=True):
        row[0].set_ylabel(title)
        row[-1].legend(handles=labels, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    for axis in panels[-1]:
        axis.set_xlabel("GPUs")
    figure.savefig(path, dpi=110)


def line(label: str, colour: str, marker: str) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, marker=marker, markersize=4, label=label)


def draw_times(axis: "Axes", costs: Costs) -> None:
    """Iteration time against GPUs, with linear scaling from the first feasible number."""
    for layout in LAYOUTS:
        plot(axis, costs[layout], map(seconds, costs[layout].values()), COLOURS[layout], MARKERS[layout])
    gpus = list(costs[COLOCATED])
    best = {n: min(seconds(costs[layout][n]) for layout in LAYOUTS) for n in gpus}
    if first := next((n for n in gpus if best[n] < inf), None):
        linear = [best[first] * first / n for n in gpus]
        axis.plot(gpus, linear, color="grey", linestyle=":", linewidth=1, zorder=0)
        found = [s for layout in LAYOUTS for s in map(seconds, costs[layout].values()) if s < inf]
        axis.set_ylim(min(found) / 2, max(found) * 1.5)
    against_gpus(axis, gpus)
    logarithmic_seconds(axis)


def draw_winners(axis: "Axes", lengths: dict[int, Costs], allowed: Iterable[str]) -> None:
    """A map of the fastest layout over GPUs and response lengths."""
    layouts = list(allowed)
    index = {None: 0} | {layout: 1 + i for i, layout in enumerate(LAYOUTS)}
    gpus = list(next(iter(lengths.values()))[COLOCATED])
    won = [[index[layout] for layout in fastest(costs, layouts).values()] for costs in lengths.values()]
    colours = ListedColormap([NONE, *(COLOURS[layout] for layout in LAYOUTS)])
    axis.pcolormesh(won, cmap=colours, vmin=-0.5, vmax=3.5, edgecolors="white", linewidth=1.5)
    axis.set_xticks([i + 0.5 for i in range(len(gpus))], [str(n) for n in gpus], rotation=60, fontsize=7)
    axis.set_yticks([i + 0.5 for i in range(len(lengths))], [f"{n:,}" for n in lengths], fontsize=7)


def draw_syncs(axis: "Axes", simulation: Simulation, costs: Costs) -> None:
    """Seconds of weight sync against GPUs."""
    gpus = list(costs[COLOCATED])
    found = [sync_seconds(simulation, costs, n) for n in gpus]
    for way, style in SYNCS.items():
        plot(axis, gpus, (inf if (s := ways[way]) is None else s for ways in found), *style)
    against_gpus(axis, gpus)
    logarithmic_seconds(axis)


def draw_shares(axis: "Axes", simulation: Simulation, costs: dict[int, Cost | str]) -> None:
    """Shares of GPU time by cause, against GPUs."""
    shares: dict[int, dict[str, float]] = {}
    for n, cost in costs.items():
        if isinstance(cost, Cost):
            into = gpu_seconds(simulation, cost)
            shares[n] = {cause: 100 * s / (cost.iteration_s * n) for cause, s in into.items()}
    for cause, style in CAUSES.items():
        plot(axis, shares, (share[cause] for share in shares.values()), *style)
    against_gpus(axis, list(costs))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0f} %"))


def plot(axis: "Axes", gpus: Iterable[int], values: Iterable[float], colour: str, marker: str) -> None:
    """A line through the finite values."""
    points = [(n, value) for n, value in zip(gpus, values, strict=True) if isfinite(value)]
    if points:
        axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1.3)


def against_gpus(axis: "Axes", gpus: list[int]) -> None:
    """Format the horizontal axis."""
    axis.set_xscale("log", base=2)
    axis.set_xlim(gpus[0] / 1.3, gpus[-1] * 1.3)
    axis.set_xticks(gpus, [str(n) for n in gpus], rotation=60, fontsize=7)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(color="0.92")
    axis.set_axisbelow(True)


def logarithmic_seconds(axis: "Axes") -> None:
    """Format the vertical axis, with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
