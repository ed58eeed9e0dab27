"""What a report says, section by section."""

import math
from dataclasses import dataclass, field

from grpo_pl.commands.compare import panels
from grpo_pl.commands.compare.comparison import Comparison, Result, interval_of
from grpo_pl.commands.compare.costs import COSTS, Cost, cost_of
from grpo_pl.commands.compare.figures import Picture
from grpo_pl.commands.compare.report import methods
from grpo_pl.commands.compare.report.wording import (
    NONE,
    ends,
    finding,
    number,
    p_value,
    verdict,
)
from grpo_pl.commands.compare.responses import Dialogue, side_by_side
from grpo_pl.commands.compare.runs import SECONDS, TOKENS


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the rows."""

    header: list[str]
    rows: list[list[str]]
    numeric: bool = True
    """Whether the columns after the first are numbers."""

    def transposed(self) -> "Table":
        """The same with rows as columns."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return Table(list(header), [list(row) for row in rows], self.numeric)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    dialogues: list[Dialogue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """How the numbers were made."""

    @property
    def name(self) -> str:
        """The title as a file's name."""
        return "-".join(self.title.lower().split())


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    groups: list[str]
    """Names in the order of their colours; the base first."""
    remarks: list[str]
    findings: list[str]
    sections: list[Section]


def document(comparison: Comparison, title: str = "Comparison of runs") -> Document:
    """Everything that a report of a comparison says."""
    sections = [
        what_differs(comparison),
        outcome(comparison),
        Section(
            "Learning curves",
            pictures=panels.learning_curves(comparison),
            notes=methods.CURVES,
        ),
        costs(comparison),
        Section("Inside training", pictures=panels.paths(comparison)),
        responses(comparison),
        runs(comparison),
    ]
    names = [group.name for group in comparison.groups]
    return Document(title, names, comparison.remarks, findings(comparison), sections)


def findings(comparison: Comparison) -> list[str]:
    """Each group but the base in a sentence."""
    return [finding(comparison, effect) for effect in comparison.effects]


def what_differs(comparison: Comparison) -> Section:
    """The settings that are not the same in all groups."""
    keys = {d.key: d.base for group in comparison.groups for d in group.differences}
    others = comparison.groups[1:]
    if not keys:
        return Section("What differs", ["Nothing but seeds and folders."])
    rows = [
        [key, base, *(next((d.other for d in g.differences if d.key == key), "same") for g in others)]
        for key, base in keys.items()
    ]
    header = ["setting", comparison.base.name, *(group.name for group in others)]
    alike = [group.name for group in others if group.runs[0].config and not group.differences]
    text = [f"{', '.join(alike)}: the same settings as {comparison.base.name}."] if alike else []
    return Section("What differs", text, [Table(header, rows, numeric=False)])


def outcome(comparison: Comparison) -> Section:
    """Final values, and differences from the base."""
    name = panels.readable(comparison.metric)
    final = Table(
        ["", "seeds", f"final {name}", "95 % over seeds", "95 % over problems"],
        [
            [
                result.group.name,
                str(len(result.by_seed)),
                number(result.over_seeds.mean if result.over_seeds else None),
                ends(result.over_seeds),
                ends(result.over_problems),
            ]
            for result in comparison.results
        ],
    )
    tables, pictures = [final], [panels.final_values(comparison)]
    if comparison.effects:
        tables.append(effects(comparison))
        pictures.append(panels.differences(comparison))
    return Section("Outcome", tables=tables, pictures=pictures, notes=methods.how_tested(comparison))


def effects(comparison: Comparison) -> Table:
    """Paired differences, with their tests."""
    header = [f"minus {comparison.base.name}", "pairs", "difference", "95 % over seeds", "95 % over problems"]
    header += ["p, t-test", "p, Holm", "p, ranks", "Hedges' g", "verdict"]
    return Table(
        header,
        [
            [
                e.result.group.name,
                str(len(e.pairs)),
                number(e.test.difference.mean if e.test.difference else None, sign=True),
                ends(e.test.difference, sign=True),
                ends(e.over_problems, sign=True),
                p_value(e.test.p),
                p_value(e.p_holm),
                p_value(e.test.p_ranks),
                number(e.g, 2, sign=True),
                verdict(e),
            ]
            for e in comparison.effects
        ],
    )


def costs(comparison: Comparison) -> Section:
    """What each group needs, side by side."""
    measured = [cost for cost in COSTS if any(cost_of(g, cost) is not None for g in comparison.groups)]
    rows = [
        [
            f"{cost.name}, {cost.unit}" if cost.unit else cost.name,
            *(beside_base(comparison, i, cost) for i in range(len(comparison.groups))),
        ]
        for cost in measured
    ]
    header = ["", *(group.name for group in comparison.groups)]
    pictures = panels.trade_offs(comparison)
    if (bars := panels.stages(comparison)) is not None:
        pictures.append(bars)
    return Section(
        "Cost", tables=[Table(header, rows)] if measured else [], pictures=pictures, notes=methods.COSTS
    )


def beside_base(comparison: Comparison, i: int, cost: Cost) -> str:
    """A cost, and how many times the base's it is."""
    ours, theirs = (cost_of(comparison.groups[j], cost) for j in (i, 0))
    said = number(ours, cost.digits)
    if not i or ours is None or not theirs or said == number(theirs, cost.digits):
        return said
    return f"{said} ({ours / theirs:.2f}x)"


def responses(comparison: Comparison) -> Section:
    """What the groups answered to the same prompts."""
    found = side_by_side(comparison.groups)
    if not found:
        said = (
            "No two groups have answered the same prompt in the same iteration (samples.jsonl of one seed)."
        )
        return Section("Responses", [said])
    first = found[0]
    where = (
        f"Seed {first.seed}, iteration {first.iteration}: the first response to each of the first prompts."
    )
    return Section("Responses", [where], dialogues=found)


def runs(comparison: Comparison) -> Section:
    """Every run that was looked at."""
    header = ["group", "seed", "iterations", panels.readable(comparison.metric), "95 % over problems"]
    header += ["response tokens", "training, s", "state", "folder"]
    rows = [
        row_of_run(result, i, comparison.metric)
        for result in comparison.results
        for i in range(len(result.group.runs))
    ]
    return Section("Runs", tables=[Table(header, rows)])


def row_of_run(result: Result, i: int, metric: str) -> list[str]:
    """One run of a group."""
    run = result.group.runs[i]
    iterations = run.last("iteration")
    return [
        result.group.name,
        run.seed,
        NONE if iterations is None else f"{iterations:.0f}",
        number(run.last(metric)),
        ends(interval_of(run, metric)),
        number(math.fsum(run.measured(TOKENS)), 0),
        number(math.fsum(run.measured(SECONDS)), 0),
        run.problem or "finished",
        str(run.folder),
    ]
