"""The report on a comparison: tables on the terminal, one HTML file, and Markdown with pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from grpo_pl.commands.compare.comparison import Comparison, compare
from grpo_pl.commands.compare.report import document as content
from grpo_pl.commands.compare.report.rendering import html, markdown, write_pictures
from grpo_pl.commands.compare.report.tuning import tuning
from grpo_pl.commands.compare.statistics import Interval

HTML_FILE, MARKDOWN_FILE, PICTURES_FOLDER = "report.html", "report.md", "report_pictures"


def report(
    runs: list[Path],
    out: Path,
    *,
    base: str | None,
    metric: str,
    margin: float | None = None,
    first: Sequence[content.Section] = (),
    looks: Mapping[str, Interval] | None = None,
) -> None:
    """Compare runs, print the tables and write the report, with further sections, into a folder.

    `looks` are the intervals that decide the questions of a sequential study.
    """
    comparison = compare(runs, base, metric, margin)
    title = readable(out)
    document = content.document(comparison, title, first, tuning(out), looks)
    console = Console()
    for section in first:
        show_section(section, console)
    show(comparison, document, console)
    write(document, out)
    console.print(f"{out / HTML_FILE}, {out / MARKDOWN_FILE}", highlight=False, markup=False)


def readable(out: Path) -> str:
    """The name of a folder as a title."""
    return out.resolve().name.replace("_", " ") or "Comparison of runs"


def write(report: content.Document, out: Path) -> None:
    """Write `report.html`, and `report.md` with its pictures, into a folder."""
    write_pictures(report, out / PICTURES_FOLDER)
    (out / HTML_FILE).write_text(html(report), encoding="utf-8")
    (out / MARKDOWN_FILE).write_text(markdown(report, PICTURES_FOLDER), encoding="utf-8")


def show(comparison: Comparison, report: content.Document, console: Console) -> None:
    """Print the tables and remarks, and last, where it is read first, the answers."""
    what_differs, outcome = content.what_differs(comparison), content.outcome(comparison)
    first = [content.factors(comparison)] if comparison.factors else []
    for section in (*first, what_differs, outcome, content.costs(comparison)):
        show_section(section, console, wide=section is outcome)
    remarks = [f"! {remark}" for remark in report.remarks]
    answers = [sentence.whole for sentence in report.answers]
    for line in (*remarks, *report.basis, report.failed, report.headline, *answers):
        if line:
            console.print(line, highlight=False, markup=False)


def show_section(section: content.Section, console: Console, *, wide: bool = False) -> None:
    """Print a section's texts and tables; where it is wide, those after the first with rows as columns."""
    for text in section.text:
        console.print(f"{section.title}: {text}", highlight=False, markup=False)
    for i, each in enumerate(section.tables):
        console.print(terminal_table(each.transposed() if wide and i else each, section.title))


def terminal_table(cells: content.Table, title: str) -> Table:
    """A table of the report, on a terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(cells.header):
        table.add_column(escape(heading), justify="right" if cells.numeric and i else "left", overflow="fold")
    for row in cells.rows:
        table.add_row(*map(escape, row))
    return table
