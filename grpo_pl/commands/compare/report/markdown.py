"""A report as Markdown, with pictures beside it."""

from pathlib import Path

from grpo_pl.commands.compare.figures import png
from grpo_pl.commands.compare.report.document import Document, Section, Table
from grpo_pl.commands.compare.report.wording import number
from grpo_pl.commands.compare.responses import Dialogue

SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def markdown(report: Document, pictures: str) -> str:
    """The whole text.

    Args:
        report: What it says.
        pictures: The folder of the pictures, as the text names it.
    """
    parts = [
        f"# {plain(report.title)}",
        bullets(report.findings),
        bullets([f"Note: {r}" for r in report.remarks]),
    ]
    parts += [section(each, pictures) for each in report.sections]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_pictures(report: Document, folder: Path) -> None:
    """Draw each section's pictures into a PNG of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in report.sections:
        if each.pictures:
            png(each.pictures, report.groups, folder / f"{each.name}.png")


def plain(text: str) -> str:
    """The text with nothing in it that Markdown takes for its own, in one line."""
    return " ".join(text.split()).translate(SPECIAL)


def bullets(items: list[str]) -> str:
    """A list of sentences."""
    return "\n".join(f"- {plain(item)}" for item in items)


def section(said: Section, pictures: str) -> str:
    """A heading and what stands below it."""
    parts = [f"## {said.title}", *map(plain, said.text), *map(table, said.tables)]
    if said.pictures:
        titles = "; ".join(picture.title for picture in said.pictures)
        parts.append(f"![{plain(titles)}]({pictures}/{said.name}.png)")
    parts += [*map(dialogue, said.dialogues), *map(plain, said.notes)]
    return "\n\n".join(parts)


def table(said: Table) -> str:
    """A table of pipes."""
    rule = ["---", *(["---:" if said.numeric else "---"] * (len(said.header) - 1))]
    rows = [[plain(cell) for cell in row] for row in (said.header, *said.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def dialogue(said: Dialogue) -> str:
    """A prompt and the responses below each other, in a table."""
    answer = f" (answer: {plain(said.answer)})" if said.answer else ""
    rows = [
        [each.group, number(each.reward, 2), each.text + (" (cut off)" if each.truncated else "")]
        for each in said.responses
    ]
    return f"**{plain(said.prompt)}**{answer}\n\n" + table(
        Table(["", "reward", "response"], rows, numeric=False)
    )
