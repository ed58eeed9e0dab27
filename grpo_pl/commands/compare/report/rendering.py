"""Renders a report as one HTML file, and as Markdown with pictures beside it."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from grpo_pl.commands.compare.figures import DARK, LIGHT, key_svg, png, svg
from grpo_pl.commands.compare.report.document import Document
from grpo_pl.commands.compare.report.wording import number

MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def html(report: Document) -> str:
    """The whole page."""
    variables = {name: LIGHT.index(i) for i, name in enumerate(report.groups)}
    template = templates().get_template("report.html.jinja")
    return template.render(
        report=report, variables=variables, light=LIGHT, dark=DARK, svg=svg, key_svg=key_svg
    )


def markdown(report: Document, pictures: str) -> str:
    """The whole text; `pictures` is the folder of its pictures."""
    text = templates().get_template("report.md.jinja").render(report=report, pictures=pictures)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_pictures(report: Document, folder: Path) -> None:
    """Draw each section's pictures into a PNG with its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in report.every:
        if section.pictures:
            names = [] if section in report.first else report.groups  # whose rows have names
            png(section.pictures, names, folder / f"{section.name}.png")


def templates() -> Environment:
    """The templates beside this file: HTML escapes all texts of runs, Markdown those filtered by `plain`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "plain": plain, "printable": printable}
    return environment


def plain(text: str) -> str:
    """The text on one line, with Markdown's special characters escaped."""
    return " ".join(text.split()).translate(MARKDOWN)


def printable(text: str) -> str:
    """The text without control characters, which a page may not contain."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
