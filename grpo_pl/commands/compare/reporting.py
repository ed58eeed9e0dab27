"""The report on a comparison: tables on the terminal, one HTML file, and Markdown with pictures."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from grpo_pl.commands.compare.comparison import Comparison, compare
from grpo_pl.commands.compare.report import document as content
from grpo_pl.commands.compare.report.rendering import html, markdown, write_pictures

HTML_FILE, MARKDOWN_FILE, PICTURES_FOLDER = "report.html", "report.md", "report_pictures"


def report(
    runs: list[Path], out: Path, *, base: str | None, metric: str, margin: float | None = None
) -> None:
    """Compare runs, print the tables and write the report into a folder."""
    comparison = compare(runs, base, metric, margin)
    console = Console()
    show(comparison, console)
    write(comparison, out)
    console.print(f"{out / HTML_FILE}, {out / MARKDOWN_FILE}", highlight=False, markup=False)


def write(comparison: Comparison, out: Path) -> None:
    """Write `report.html`, and `report.md` with its pictures, into a folder."""
    name = out.resolve().name
    report = content.document(comparison, f"{name}: {len(comparison.groups)} groups compared")
    write_pictures(report, out / PICTURES_FOLDER)
    (out / HTML_FILE).write_text(html(report), encoding="utf-8")
    (out / MARKDOWN_FILE).write_text(markdown(report, PICTURES_FOLDER), encoding="utf-8")


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables, findings and remarks."""
    what_differs, outcome = content.what_differs(comparison), content.outcome(comparison)
    first = [content.factors(comparison)] if comparison.factors else []
    for section in (*first, what_differs, outcome, content.costs(comparison)):
        for text in section.text:
            console.print(f"{section.title}: {text}", highlight=False, markup=False)
        for i, each in enumerate(section.tables):
            wide = section is outcome and i > 0
            console.print(terminal_table(each.transposed() if wide else each, section.title))
    for line in (*content.findings(comparison), *(f"! {remark}" for remark in comparison.remarks)):
        console.print(line, highlight=False, markup=False)


def terminal_table(cells: content.Table, title: str) -> Table:
    """A table of the report, on a terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(cells.header):
        table.add_column(escape(heading), justify="right" if cells.numeric and i else "left", overflow="fold")
    for row in cells.rows:
        table.add_row(*map(escape, row))
    return table
