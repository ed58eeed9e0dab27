"""Runs as processes: `--jobs` of them at once, each on its share of the machine."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from grpo_pl.commands.ablate.forked import ForkedRun, ForkServer
from grpo_pl.commands.ablate.planned import PlannedRun
from grpo_pl.commands.ablate.sharing import shares_of_machine
from grpo_pl.runs.layout import ENDED_FILE

POLL_S = 0.5
LAST_WORDS = 300


class Running:
    """A run under way, in a process that ends with this one, even by SIGKILL.

    The same command continues it from its last checkpoint, with results equal to the last bit.
    """

    def __init__(self, run: PlannedRun, server: ForkServer, environment: dict[str, str]) -> None:
        self.run, self.begin = run, time.monotonic()
        self.share_before = run.share_done()
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab") as log:
            log.write(f"$ {' '.join(run.command)}\n".encode())
        self.process = ForkedRun(server, ["fit", *run.options], run.log, os.environ | environment)

    @property
    def seconds(self) -> float:
        """Its running time."""
        return time.monotonic() - self.begin

    @property
    def problem(self) -> str:
        """Why it did not come to its end; empty if it did."""
        if self.process.code == 0 and (self.run.folder / ENDED_FILE).exists():
            return ""
        return f"exit code {self.process.code}: {last_words(self.run.log)}"


def last_words(log: Path) -> str:
    """The last line of a log that is not a command."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    output = [line for line in lines if line.strip() and not line.startswith("$ ")]
    return output[-1].strip()[-LAST_WORDS:] if output else "it said nothing"


def run_all(
    runs: Sequence[PlannedRun],
    jobs: int,
    server: ForkServer,
    *,
    on_start: Callable[[PlannedRun], None],
    on_end: Callable[[Running], None],
    on_look: Callable[[list[Running]], None],
) -> None:
    """Run `runs` in their order, `jobs` at once; where one fails, the others go on.

    Args:
        runs: The runs to do.
        jobs: Runs at once.
        server: Forks them.
        on_start: Called with each run that begins.
        on_end: Called with each run that has ended, also by a failure.
        on_look: Called with the runs under way, twice a second.

    Raises:
        KeyboardInterrupt: If the user, or a signal, has ended it; all runs under way have saved.
    """
    waiting, free, running = list(runs), shares_of_machine(jobs), list[tuple[Running, dict[str, str]]]()
    try:
        while waiting or running:
            while waiting and free:
                on_start(waiting[0])
                running.append((Running(waiting.pop(0), server, free[-1]), free.pop()))
            server.wait(POLL_S)
            on_look([each for each, _ in running])
            for each, share in [pair for pair in running if pair[0].process.code is not None]:
                running.remove((each, share))
                free.append(share)
                on_end(each)
    finally:
        for each, _ in running:
            each.process.stop()
        for each, _ in running:
            each.process.wait()
