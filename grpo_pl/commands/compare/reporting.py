"""The report on a comparison: tables on the terminal, one HTML file, and Markdown with pictures."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from grpo_pl.commands.compare.comparison import Comparison, compare
from grpo_pl.commands.compare.report import document as content
from grpo_pl.commands.compare.report.rendering import html, markdown, write_pictures
from grpo_pl.commands.compare.report.tuning import tuning

HTML_FILE, MARKDOWN_FILE, PICTURES_FOLDER = "report.html", "report.md", "report_pictures"


def report(
    runs: list[Path],
    out: Path,
    *,
    base: str | None,
    metric: str,
    margin: float | None = None,
    first: Sequence[content.Section] = (),
) -> None:
    """Compare runs, print the tables and write the report into a folder, after further sections."""
    comparison = compare(runs, base, metric, margin)
    console = Console()
    for section in first:
        show_section(section, console)
    show(comparison, console)
    write(comparison, out, first)
    console.print(f"{out / HTML_FILE}, {out / MARKDOWN_FILE}", highlight=False, markup=False)


def write(comparison: Comparison, out: Path, first: Sequence[content.Section] = ()) -> None:
    """Write `report.html`, and `report.md` with its pictures, into a folder."""
    title = f"{out.resolve().name}: {len(comparison.groups)} groups compared"
    report = content.document(comparison, title, first, tuning(out))
    write_pictures(report, out / PICTURES_FOLDER)
    (out / HTML_FILE).write_text(html(report), encoding="utf-8")
    (out / MARKDOWN_FILE).write_text(markdown(report, PICTURES_FOLDER), encoding="utf-8")


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables, findings and remarks."""
    what_differs, outcome = content.what_differs(comparison), content.outcome(comparison)
    first = [content.factors(comparison)] if comparison.factors else []
    for section in (*first, what_differs, outcome, content.costs(comparison)):
        show_section(section, console, wide=section is outcome)
    for line in (*content.findings(comparison), *(f"! {remark}" for remark in comparison.remarks)):
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
