"""The content of a report, section by section."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grpo_pl.commands.compare import panels
from grpo_pl.commands.compare.answers import Answer, answers, effect_name
from grpo_pl.commands.compare.comparison import Comparison, Effect, interval_of
from grpo_pl.commands.compare.costs import COSTS, cost_of
from grpo_pl.commands.compare.figures import Picture
from grpo_pl.commands.compare.forest import forest
from grpo_pl.commands.compare.report import answering, methods
from grpo_pl.commands.compare.report.question import question
from grpo_pl.commands.compare.report.wording import (
    ends,
    factor_verdict,
    number,
    of_mean,
    p_value,
    verdict,
)
from grpo_pl.commands.compare.responses import Dialogue, side_by_side
from grpo_pl.commands.compare.runs import SECONDS, TOKENS
from grpo_pl.commands.compare.statistics import Interval


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


def table(rows: list[dict[str, str]]) -> Table:
    """A table of rows that all have the same columns."""
    return Table(list(rows[0]), [list(row.values()) for row in rows])


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
    question: str
    """What the study asks; empty if nothing says it."""
    headline: str
    """How many questions are settled, and how."""
    failed: str
    """How many runs are missing; empty if none is."""
    answers: list[answering.Sentence]
    basis: list[str]
    """What was measured, and on how many runs."""
    reading: list[str]
    """What the words of the answers mean."""
    remarks: list[str]
    first: list[Section]
    """With the answers."""
    sections: list[Section]

    @property
    def every(self) -> list[Section]:
        """All sections."""
        return [*self.first, *self.sections]


def document(
    comparison: Comparison,
    title: str = "Comparison of runs",
    first: Sequence[Section] = (),
    last: Sequence[Section] = (),
    looks: Mapping[str, Interval] | None = None,
) -> Document:
    """The whole report on a comparison: answers, pictures of effects and curves, then all else.

    Args:
        comparison: Of a study's runs.
        title: Its name.
        first: Further sections before the tables.
        last: Further sections before the list of runs.
        looks: Of a sequential study: question -> the interval that decides it.
    """
    found = answers(comparison, looks)
    sections = [
        Section("Learning curves", pictures=panels.learning_curves(comparison), notes=methods.CURVES),
        *first,
        *([factors(comparison)] if comparison.factors else []),
        outcome(comparison),
        costs(comparison),
        what_differs(comparison),
        Section("Inside training", pictures=panels.paths(comparison)),
        responses(comparison),
        *last,
        runs(comparison),
    ]
    return Document(
        title,
        [group.name for group in comparison.groups],
        question(comparison),
        answering.headline(found),
        answering.failed(comparison),
        [answering.sentence(each, comparison) for each in found],
        answering.basis(comparison),
        answering.how_to_read(comparison, found),
        comparison.remarks,
        [effects_pictures(comparison, found)] if found else [],
        sections,
    )


def effects_pictures(comparison: Comparison, found: Sequence[Answer]) -> Section:
    """The forest plot of all answers."""
    return Section(
        "Effects", pictures=forest(comparison, found), notes=methods.how_effects_are_drawn(comparison)
    )


def factors(comparison: Comparison) -> Section:
    """Main effects and interactions of a factorial study."""
    rows = [
        {
            "effect": effect_name(effect.steps),
            "seeds": str(len(effect.by_seed)),
            "difference": number(effect.interval.mean, sign=True),
            "95 %": ends(effect.interval, sign=True),
            "95 %, all at once": ends(effect.simultaneous, sign=True),
            "p, t-test": p_value(effect.p),
            "p, adjusted": p_value(effect.p_adjusted),
            "verdict": factor_verdict(effect, comparison.margin),
        }
        for effect in comparison.factors
    ]
    return Section(
        "Tests of the effects", tables=[table(rows)], notes=methods.how_factors_are_tested(comparison)
    )


def what_differs(comparison: Comparison) -> Section:
    """The settings that differ between groups."""
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
    final = [
        {
            "": result.group.name,
            "seeds": str(len(result.by_seed)),
            f"final {panels.readable(comparison.metric)}": number(of_mean(result.over_seeds)),
            "95 % over seeds": ends(result.over_seeds),
            "95 % over problems": ends(result.over_problems),
            "interquartile mean": number(of_mean(result.iqm)),
            "95 %, bootstrap": ends(result.iqm),
            "area under the curve": number(of_mean(result.area)),
            "95 % of the area": ends(result.area),
        }
        for result in comparison.results
    ]
    tables, pictures = [table(final)], [panels.final_values(comparison)]
    if comparison.effects:
        tables.append(effects(comparison))
        pictures.append(panels.differences(comparison))
    return Section("Outcome", tables=tables, pictures=pictures, notes=methods.how_tested(comparison))


def effects(comparison: Comparison) -> Table:
    """Paired differences, with their tests."""
    return table([effect_row(comparison, effect) for effect in comparison.effects])


def effect_row(comparison: Comparison, effect: Effect) -> dict[str, str]:
    """One paired difference."""
    on_problems = any(e.on_problems for e in comparison.effects)
    crossed = effect.estimate if effect.on_problems else None
    p_crossed = float(crossed.p_of()) if crossed is not None and crossed.tested else None
    over_problems = (
        {"95 % over problems and seeds": ends(crossed and crossed.interval(), sign=True)}
        if on_problems
        else {"95 % over problems": ends(effect.over_problems, sign=True)}
    )
    margin = comparison.margin
    return {
        f"minus {comparison.base.name}": effect.result.group.name,
        "pairs": str(len(effect.pairs)),
        "difference": number(of_mean(effect.test.difference), sign=True),
        "95 % over seeds": ends(effect.test.difference, sign=True),
        **over_problems,
        "95 %, all at once": ends(effect.simultaneous, sign=True),
        "p, t-test": p_value(effect.test.p),
        **({"p, problems and seeds": p_value(p_crossed)} if on_problems else {}),
        "p, Holm" if margin is None else "p, adjusted": p_value(effect.p_holm),
        **({} if margin is None else {"p, equivalence, adjusted": p_value(effect.p_equivalent)}),
        "p, ranks": p_value(effect.test.p_ranks),
        "Hedges' g": number(effect.g, 2, sign=True),
        "probability of improvement": number(of_mean(effect.improvement), 2),
        "95 %, bootstrap": ends(effect.improvement),
        "difference of areas": number(of_mean(effect.area), sign=True),
        "95 % of the areas": ends(effect.area, sign=True),
        "verdict": verdict(comparison, effect),
    }


def costs(comparison: Comparison) -> Section:
    """The costs of each group, side by side."""
    groups = comparison.groups
    rows = []
    for cost in COSTS:
        base, *others = (cost_of(group, cost) for group in groups)
        if base is not None or any(other is not None for other in others):
            name = f"{cost.name}, {cost.unit}" if cost.unit else cost.name
            beside = [beside_base(other, base, cost.digits) for other in others]
            rows.append([name, number(base, cost.digits), *beside])
    tables = [Table(["", *(group.name for group in groups)], rows)] if rows else []
    bars = panels.stages(comparison)
    pictures = panels.trade_offs(comparison) + ([bars] if bars else [])
    return Section("Cost", tables=tables, pictures=pictures, notes=methods.COSTS)


def beside_base(ours: float | None, base: float | None, digits: int) -> str:
    """A cost, and its ratio to the base's."""
    text = number(ours, digits)
    if ours is None or not base or text == number(base, digits):
        return text
    return f"{text} ({ours / base:.2f}x)"


def responses(comparison: Comparison) -> Section:
    """The groups' responses to the same prompts."""
    dialogues = side_by_side(comparison.groups)
    text = "No two groups have answered the same prompt in the same iteration (samples.jsonl of one seed)."
    if dialogues:
        where = f"Seed {dialogues[0].seed}, iteration {dialogues[0].iteration}"
        text = f"{where}: the first response to each of the first prompts."
    return Section("Responses", [text], dialogues=dialogues)


def runs(comparison: Comparison) -> Section:
    """Every run of the comparison."""
    metric = comparison.metric
    rows = [
        {
            "group": group.name,
            "seed": run.seed,
            "iterations": number(run.last("iteration"), 0),
            panels.readable(metric): number(run.last(metric)),
            "95 % over problems": ends(interval_of(run, metric)),
            "tokens generated": number(math.fsum(run.measured(TOKENS)), 0),
            "training, s": number(math.fsum(run.measured(SECONDS)), 0),
            "state": run.problem or "finished",
            "folder": str(run.folder),
        }
        for group in comparison.groups
        for run in group.runs
    ]
    return Section("Runs", tables=[table(rows)])
