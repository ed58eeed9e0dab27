"""The findings, on the terminal theme by theme and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_pl.commands.doctor.findings import Finding, Verdict, broken

COLORS: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}


class Report:
    """Collects findings by theme, and prints each theme on the console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.themes: dict[str, list[Finding]] = {}
        self.skipped: dict[str, str] = {}

    def add(self, theme: str, findings: list[Finding]) -> bool:
        """Print a theme; whether it has no problem."""
        self.themes[theme] = findings
        self.console.print(Text(theme, style="bold"))
        width = max(len(finding.check) for finding in findings)
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=len("  warning"), no_wrap=True)
        table.add_column(min_width=width, no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            mark = Text(f"  {finding.verdict}", style=COLORS[finding.verdict])
            table.add_row(mark, Text(finding.check), Text(finding.found))
            if finding.fix:
                table.add_row("", "", Text(f"-> {finding.fix}", style="bold"))
        self.console.print(table)
        return not broken(findings)

    def skip(self, themes: list[str], reason: str) -> None:
        """Print the themes that are not checked, and the reason."""
        self.skipped |= dict.fromkeys(themes, reason)
        self.console.print(Text(f"not looked at: {', '.join(themes)} ({reason})", style="dim"))

    def close(self) -> bool:
        """Print the counts; whether there is no problem."""
        verdicts = [finding.verdict for findings in self.themes.values() for finding in findings]
        counts = {verdict: verdicts.count(verdict) for verdict in COLORS}
        self.console.print(
            Text(f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} checks ok")
        )
        return not counts["problem"]

    def as_json(self) -> dict[str, Any]:
        """All findings and skipped themes."""
        themes = {theme: list(map(asdict, findings)) for theme, findings in self.themes.items()}
        return {"themes": themes, "not_looked_at": self.skipped}
