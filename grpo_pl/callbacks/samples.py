"""Responses for people to read: `samples.jsonl`, and a table now and then."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typing_extensions import override

from grpo_pl.callbacks.progress import Progress
from grpo_pl.runs.layout import SAMPLES_FILE
from grpo_pl.system.atomic_files import append, replacing
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, SampleRecord, in_words

log = logging.getLogger(__name__)


class Samples(pl.Callback):
    """Appends each iteration's responses to `samples.jsonl`, and prints some as a table.

    Args:
        keep: Responses written for each iteration, the first ones of the rollout; 0 for none.
        every: Iterations from one printed table to the next; 0 for none.
        rows: Responses in a printed table.
    """

    def __init__(self, keep: int = 64, every: int = 5, rows: int = 4) -> None:
        for key, value in (("keep", keep), ("every", every), ("rows", rows)):
            if value < 0:
                raise ArgumentError(f"{key}={value}: expected 0 or more")
        self.keep, self.every, self.rows = keep, every, rows

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the lines that a resumed run had written after its checkpoint."""
        path = Path(trainer.default_root_dir) / SAMPLES_FILE
        if not trainer.is_global_zero or not path.exists():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        iterations = [iteration_of(line) for line in lines]
        if torn := iterations[:-1].count(None):
            log.warning("! %s: %d torn lines are left out", path, torn)
        with replacing(path) as file:
            for line, iteration in zip(lines, iterations, strict=True):
                if iteration is not None and iteration <= trainer.current_epoch:
                    file.write(line)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Experience, batch_idx: int
    ) -> None:
        if not batch.records or not trainer.is_global_zero:
            return
        iteration = trainer.current_epoch + 1
        kept = [{"iteration": iteration, **content(record)} for record in batch.records[: self.keep]]
        path = Path(trainer.default_root_dir) / SAMPLES_FILE
        append(path, "".join(json.dumps(record) + "\n" for record in kept))
        if self.every and (iteration - 1) % self.every == 0 and self.rows:
            bar = trainer.progress_bar_callback
            console = bar.console if isinstance(bar, Progress) else Console()
            console.print(samples_table(best_to_worst(batch.records, self.rows), f"iteration {iteration}"))


def content(record: SampleRecord) -> dict[str, Any]:
    """A record as a line holds it: what describes an episode only where it is one."""
    columns = asdict(record)
    if record.stop is None:
        del columns["stop"], columns["transcript"]
    return columns


def iteration_of(line: bytes) -> int | None:
    """The iteration of a line of the file; None for a torn line."""
    try:
        return int(json.loads(line)["iteration"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def best_to_worst(records: list[SampleRecord], count: int) -> list[SampleRecord]:
    """`count` records, evenly spread from best to worst reward."""
    ranked = sorted(records, key=lambda r: -(r.reward if r.reward is not None else float("-inf")))
    if len(ranked) <= count:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / max(count - 1, 1))] for i in range(count)]


def samples_table(records: list[SampleRecord], title: str) -> Table:
    """A table of prompts, responses, rewards by component, and advantages."""
    out = Table(title=title, title_justify="left", show_lines=True)
    for column in ("prompt", "response"):
        out.add_column(column, ratio=3, overflow="fold")
    out.add_column("answer", overflow="fold")
    for column in (*records[0].rewards, "reward", "advantage"):
        out.add_column(column, justify="right")
    for record in records:
        numbers = [*record.rewards.values(), record.reward, record.advantage]
        cut = " [dim](cut)[/dim]" if record.truncated else ""
        out.add_row(
            escape(shorten(record.prompt)),
            escape(shorten(in_words(record.transcript) or record.response)) + cut,
            escape(shorten(record.answer, 40)),
            *("-" if number is None else f"{number:.2f}" for number in numbers),
        )
    return out


def shorten(text: str, limit: int = 240) -> str:
    """The text's two ends, if it is longer than the limit."""
    text = text.strip()
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
