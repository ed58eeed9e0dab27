"""The findings, on the terminal theme by theme and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import takewhile
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from grpo_pl.commands.doctor.findings import Finding, Verdict, broken

ANSWER_WIDTH = 20
COLORS: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}


class Report:
    """Collects findings by theme, and prints each theme on the console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.themes: dict[str, list[Finding]] = {}
        self.skipped: dict[str, str] = {}
        self.prompts: dict[str, list[tuple[str, str]]] = {}

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

    def show(self, key: str, prompts: list[tuple[str, str]]) -> None:
        """Print prompts with their gold answers: the first whole, of the others what not all share."""
        self.prompts[key] = prompts
        first, gold = prompts[0]
        title = f"{key}: the first prompt as the model reads it; its gold answer: {shortened(gold, 60)}"
        self.console.print(Text(title, style="bold"))
        self.console.print(Padding(Text(first, style="cyan"), (0, 0, 0, 2)))
        begin = begins_alike(prompt for prompt, _ in prompts)
        end = begins_alike(prompt[begin:][::-1] for prompt, _ in prompts)
        room = max(self.console.width - ANSWER_WIDTH - 4, 40)
        for prompt, answer in prompts[1:]:
            line = Text(f"  {shortened(answer, ANSWER_WIDTH):<{ANSWER_WIDTH}}  ")
            own = prompt[begin : len(prompt) - end]
            self.console.print(line.append(shortened(own, room), style="cyan"))

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
        prompts = {
            key: [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]
            for key, pairs in self.prompts.items()
        }
        return {"themes": themes, "not_looked_at": self.skipped, "prompts": prompts}


def shortened(text: str, most: int) -> str:
    """A text in one line, without its middle where it is long."""
    line = repr(text)[1:-1]
    half = (most - 3) // 2
    return line if len(line) <= most else f"{line[:half]}...{line[-half:]}"


def begins_alike(texts: Iterable[str]) -> int:
    """The number of characters that all texts begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False)))
