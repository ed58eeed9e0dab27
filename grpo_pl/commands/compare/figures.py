"""Draws pictures as SVG in the page's own colours, and as PNG."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
WIDTH, HEIGHT = 4.3, 3.1
COLUMNS = 3


@dataclass(frozen=True)
class Palette:
    """Colours of one rendering."""

    text: str
    base: str
    others: tuple[str, ...]

    def index(self, i: int) -> int:
        """The colour of the i-th group; the base has 0."""
        return (i - 1) % len(self.others) + 1 if i else 0

    def line(self, i: int) -> dict[str, Any]:
        """The line style of the i-th group; group 0 is the base. No two of the first 24 look the same."""
        turn = max(i - 1, 0) // len(self.others)
        return {
            "color": (self.base, *self.others)[self.index(i)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[turn % len(DASHES)],
        }


LIGHT = Palette("#222222", "#767676", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"))
"""Grey, and Okabe and Ito's colours without black and yellow: told apart by colour-blind readers too."""
DARK = Palette("#e6e6e6", "#a3a3a3", ("#4DA6E0", "#FF8A4C", "#2BC79A", "#EBA6CB", "#F0B93A", "#A9DBF7"))
"""The same colours, light enough for a dark page."""
PAGE = Palette("#010101", "#010102", tuple(f"#0101{i:02x}" for i in range(3, 3 + len(LIGHT.others))))
"""Stand-ins, which `svg` replaces by the page's variables."""
VARIABLES = {PAGE.text: "currentColor", PAGE.base: "var(--s0)"} | {
    color: f"var(--s{i})" for i, color in enumerate(PAGE.others, 1)
}


@dataclass(frozen=True)
class Picture:
    """One question, drawn on axes."""

    title: str
    x: str
    y: str
    draw: Callable[[Axes, Palette], None]
    width: float = WIDTH
    """Inches."""
    height: float = HEIGHT


STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "grpo_pl", "font.size": 9, "axes.linewidth": 0.6},
    **{"lines.markersize": 3.5, "lines.linewidth": 1.6, "axes.axisbelow": True, "grid.alpha": 0.18},
}
COLORED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")


@contextmanager
def drawing(palette: Palette) -> Iterator[None]:
    """Draws frames, ticks and labels in the text's colour."""
    with rc_context(STYLE | dict.fromkeys(COLORED, palette.text)):
        yield


def draw(picture: Picture, axes: Axes, palette: Palette) -> None:
    """Draw a picture with its title, units and grid."""
    axes.set_title(picture.title, loc="left", fontsize=10)
    axes.set(xlabel=picture.x, ylabel=picture.y)
    axes.grid()
    axes.spines[["top", "right"]].set_visible(False)
    axes.patch.set_visible(False)
    picture.draw(axes, palette)


def svg(picture: Picture, prefix: str) -> Markup:
    """A picture as an inline SVG element without background, in the page's variables `--s0`, `--s1`, ...

    Its title is its label for screen readers. `prefix` makes its ids unique in the page.
    """
    with drawing(PAGE):
        figure = Figure(figsize=(picture.width, picture.height), layout="constrained")
        draw(picture, figure.subplots(), PAGE)
        return inline(figure, prefix, Markup(' aria-label="{}"').format(picture.title))


def key_svg(i: int, prefix: str) -> Markup:
    """A sample of the i-th group's lines."""
    with drawing(PAGE):
        figure = Figure(figsize=(0.42, 0.16))
        style = PAGE.line(i) | {"linewidth": 2, "markersize": 6, "markevery": [1]}
        figure.add_artist(Line2D([0.02, 0.5, 0.98], [0.5] * 3, **style))
        return inline(figure, prefix, Markup())


def inline(figure: Figure, prefix: str, attributes: Markup) -> Markup:
    """A figure as an SVG element with further attributes."""
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    opening = re.search(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', text)
    assert opening is not None, "matplotlib writes one"
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[opening.end() :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text).replace("xlink:href", "href")
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    return Markup('<svg viewBox="{}" role="img"{}>{}').format(opening[1], attributes, Markup(text))


def png(pictures: Sequence[Picture], names: Sequence[str], path: Path) -> None:
    """Write pictures side by side into a PNG, with the groups' names below."""
    columns = 2 if len(pictures) == 4 else min(len(pictures), COLUMNS)
    rows = -(-len(pictures) // columns)
    with drawing(LIGHT):
        width, height = max(p.width for p in pictures), max(p.height for p in pictures)
        size = (width * columns, height * rows + 0.3)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        every = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, picture in zip(every, pictures, strict=False):
            draw(picture, axes, LIGHT)
        for axes in every[len(pictures) :]:
            axes.set_visible(False)
        lines = [Line2D([], [], label=name, **LIGHT.line(i)) for i, name in enumerate(names)]
        if lines:
            figure.legend(handles=lines, loc="outside lower center", ncols=2 * columns, frameon=False)
        figure.savefig(path, dpi=110)
