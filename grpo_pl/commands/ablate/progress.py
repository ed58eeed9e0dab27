"""The progress of a study: a bar over all of it, and a line for each run that ends."""

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from grpo_pl.callbacks.progress import line
from grpo_pl.commands.ablate.planned import PlannedRun
from grpo_pl.commands.ablate.running import Running


class StudyProgress:
    """A bar over the whole study with the time left; only lines where the output is not a terminal.

    Args:
        runs: The runs to do.
        ended: The number of runs that had ended before.
        jobs: Runs at once.
        metric: Shown, first value to last, of each run that ends.
    """

    def __init__(self, runs: Sequence[PlannedRun], ended: int, jobs: int, metric: str) -> None:
        self.jobs, self.metric = jobs, metric
        self.waiting = {run.name: (run, run.share_done()) for run in runs}
        self.total, self.ended = len(runs) + ended, ended
        self.problems: dict[str, str] = {}
        self._seconds: list[tuple[str, float]] = []
        self.console = Console()
        columns = (
            *(TextColumn("runs {task.fields[ended]}/{task.total:.0f}"), BarColumn()),
            *(TextColumn("{task.percentage:.0f} %"), TextColumn("left {task.fields[left]}")),
            TextColumn("{task.fields[now]}", markup=False),
        )
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.bar.add_task("study", total=self.total, completed=ended, ended=ended, left="?", now="")

    def __enter__(self) -> "StudyProgress":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, run: PlannedRun) -> None:
        """Print that a run begins."""
        _, share = self.waiting.pop(run.name)
        self.say(f"{run.name}: " + (f"goes on from {share:.0%}" if share else "begins"))

    def look(self, running: list[Running]) -> None:
        """Update the bar from the runs under way."""
        shares = [each.run.share_done() for each in running]
        left = self.seconds_left(running, shares)
        newest = [f"{each.run.name} {share:.0%}" for each, share in zip(running, shares, strict=True)]
        self.bar.update(
            self.bar.task_ids[0],
            completed=self.ended + sum(shares),
            ended=self.ended,
            left="?" if left is None else clock(left),
            now="; ".join(newest),
        )

    def end(self, run: Running) -> None:
        """Print the result of a run that has ended, or its problem."""
        self.ended += 1
        if problem := run.problem:
            self.problems[run.run.name] = problem
            self.say(f"! {run.run.name}: {problem} ({run.run.log})")
            return
        if run.share_before < 1:
            self._seconds.append((run.run.variant, run.seconds / (1 - run.share_before)))
        rows = run.run.rows()
        values = [row[self.metric] for row in rows if self.metric in row]
        last = Text.from_markup(line(rows[-1])).plain
        result = f"{self.metric} {values[0]:.3f} -> {values[-1]:.3f}" if values else last
        self.say(f"{run.run.name}: {result} in {clock(run.seconds)} ({self.ended} of {self.total})")

    def seconds_left(self, running: list[Running], shares: list[float]) -> float | None:
        """Estimated from runs of the same variant, else from all runs; None until one has progressed."""
        known = list(self._seconds)
        for each, share in zip(running, shares, strict=True):
            if share > each.share_before:
                known.append((each.run.variant, each.seconds / (share - each.share_before)))
        if not known:
            return None

        def whole(run: PlannedRun) -> float:
            same = [seconds for variant, seconds in known if variant == run.variant]
            return fmean(same or [seconds for _, seconds in known])

        unfinished = [*self.waiting.values(), *zip([each.run for each in running], shares, strict=True)]
        return sum(whole(run) * (1 - share) for run, share in unfinished) / self.jobs


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
