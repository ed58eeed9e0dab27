"""A report as one HTML file: no script, nothing loaded from anywhere, light and dark, phone and desktop."""

from html import escape
from pathlib import Path

from grpo_pl.commands.compare.figures import DARK, LIGHT, Palette, Picture, key_svg, svg
from grpo_pl.commands.compare.report.document import Document, Section, Table
from grpo_pl.commands.compare.report.wording import number
from grpo_pl.commands.compare.responses import Dialogue

STYLE = Path(__file__).with_name("page.css")


def html(report: Document) -> str:
    """The whole page."""
    colors = {name: i for i, name in enumerate(report.groups)}
    keys = "".join(f"<span>{key_svg(i, f'key{i}')}{escape(name)}</span>" for name, i in colors.items())
    style = f"""
:root {{ {variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}
{STYLE.read_text(encoding="utf-8")}"""
    sections = "\n".join(section(each, colors) for each in report.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(report.title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
{bullets("findings", report.findings)}
{bullets("remarks", report.remarks)}
</header>
<nav aria-label="groups">{keys}</nav>
<main>
{sections}
</main>
</body>
</html>
"""


def variables(palette: Palette) -> str:
    """The colours of the text and of the groups."""
    colors = "".join(f" --s{i}: {color};" for i, color in enumerate((palette.base, *palette.others)))
    return f"--text: {palette.text};{colors}"


def section(said: Section, colors: dict[str, int]) -> str:
    """A heading and what stands below it."""
    pictures = "".join(figure(p, f"{said.name}{i}") for i, p in enumerate(said.pictures))
    parts = [
        f'<section id="{said.name}">\n<h2>{escape(said.title)}</h2>',
        *(f"<p>{escape(text)}</p>" for text in said.text),
        *map(table, said.tables),
        f'<div class="pictures">{pictures}</div>' if pictures else "",
        *(dialogue(each, colors) for each in said.dialogues),
        *(f'<p class="note">{escape(note)}</p>' for note in said.notes),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def bullets(name: str, items: list[str]) -> str:
    """A list of sentences, if there are any."""
    inside = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<ul class="{name}">{inside}</ul>' if items else ""


def table(said: Table) -> str:
    """A table that scrolls by itself where it is too wide for the page."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in said.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in said.rows
    )
    kind = ' class="numbers"' if said.numeric else ""
    inside = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide" tabindex="0"><table{kind}>{inside}</table></div>'


def figure(picture: Picture, prefix: str) -> str:
    """A picture, named for those who cannot see it."""
    drawn = svg(picture, prefix).replace('role="img"', f'role="img" aria-label="{escape(picture.title)}"', 1)
    return f"<figure>{drawn}</figure>"


def dialogue(said: Dialogue, colors: dict[str, int]) -> str:
    """A prompt with the groups' responses side by side."""
    cards = "".join(
        f'<div class="response" style="--own: var(--s{color(colors[each.group])})">'
        f"<h4>{escape(each.group)}<small>reward {number(each.reward, 2)}"
        f"{', cut off' if each.truncated else ''}</small></h4>"
        f"<pre>{escape(printable(each.text))}</pre></div>"
        for each in said.responses
    )
    answer = f"<small>answer: {escape(said.answer)}</small>" if said.answer else ""
    return (
        f'<article><pre class="prompt">{escape(printable(said.prompt))}</pre>{answer}'
        f'<div class="responses">{cards}</div></article>'
    )


def color(i: int) -> int:
    """The variable of the i-th group's colour."""
    return (i - 1) % len(LIGHT.others) + 1 if i else 0


def printable(text: str) -> str:
    """The text without control characters, which no page may hold."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
