"""The first screen of a report: what was asked, what it rests on, and the answers in sentences."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grpo_pl.commands.compare.answers import Answer, name_of
from grpo_pl.commands.compare.comparison import Comparison
from grpo_pl.commands.compare.panels import readable
from grpo_pl.commands.compare.report.glossary import glossary
from grpo_pl.commands.compare.report.question import question
from grpo_pl.commands.compare.report.wording import NONE, ends, number
from grpo_pl.commands.compare.runs import ACCURACY
from grpo_pl.commands.compare.statistics import Interval


@dataclass(frozen=True)
class Sentence:
    """An answer in words."""

    name: str
    verdict: str
    """`better`, `worse`, `does not matter`, `not settled`, ...: what stands out of it."""
    kind: str
    """`settled`, `open` or `none`: the look of the verdict."""
    text: str
    costs: str
    """In a second sentence; empty where none was measured."""
    interaction: bool = False
    """Whether it is of two factors together."""

    @property
    def whole(self) -> str:
        """As a line of text."""
        return " ".join(part for part in (f"{self.name}: {self.verdict}. {self.text}", self.costs) if part)


def sentence(answer: Answer, comparison: Comparison) -> Sentence:
    """An answer in words."""
    verdict, kind = verdict_in_words(answer, comparison)
    name = name_of(answer)
    if answer.kind == "variant":
        name = f"{name} instead of {comparison.base.name}"
    if answer.kind == "interaction":
        name = " and ".join(f"{step.factor} ({step.level})" for step in answer.steps)
    both = answer.kind == "interaction"
    costs = "" if both else costs_in_words(answer)
    return Sentence(name, verdict, kind, "".join(evidence(answer, comparison)), costs, both)


def verdict_in_words(answer: Answer, comparison: Comparison) -> tuple[str, str]:
    """The verdict, and its look."""
    if answer.verdict is None:
        return ("no pairs" if answer.seeds == 0 else "not known"), "none"
    if answer.verdict == "not settled":
        return "not settled", "open"
    if answer.verdict == "equivalent":
        return "does not matter", "settled"
    if answer.kind == "interaction" or comparison.results[0].over_problems is None:
        return answer.verdict, "settled"
    return ("better" if answer.verdict == "higher" else "worse"), "settled"


def evidence(answer: Answer, comparison: Comparison) -> Iterator[str]:
    """The parts of the sentence behind a verdict."""
    metric = readable(comparison.metric)
    if answer.gain is None:
        yield f"No finished run shares a seed with {comparison.base.name}."
        return
    if answer.kind == "interaction":
        yield f"The two together bring {number(answer.gain.mean, sign=True)} beyond the sum of each"
    else:
        yield f"It {change(answer)} {metric} by {amount(answer)}"
    if (interval := ends(answer.gain, sign=True)) != NONE:
        yield f" (95 % interval {interval})"
    if answer.verdict is None:
        yield (
            "; one seed tells no interval."
            if answer.seeds == 1
            else "; all seeds agree, so no test is possible."
        )
    elif answer.verdict == "equivalent":
        yield f": smaller than {comparison.margin:g}, the least that was declared to matter."
    elif answer.verdict != "not settled":
        yield ": a difference beyond chance."
    else:
        yield ": it may be chance."
        if answer.more_seeds is not None:
            yield f" About {answer.more_seeds:,} more seeds would settle it if the true effect is that large."


def change(answer: Answer) -> str:
    """The verb for an answer's direction, where that is settled."""
    return {"higher": "raises", "lower": "lowers"}.get(answer.verdict or "", "changes")


def amount(answer: Answer) -> str:
    """The difference; without its sign where the verb has it."""
    assert answer.gain is not None, "there are pairs"
    settled = answer.verdict in ("higher", "lower")
    return number(abs(answer.gain.mean)) if settled else number(answer.gain.mean, sign=True)


def costs_in_words(answer: Answer) -> str:
    """`Training takes 1.52 times as long (1.50 to 1.54), peak memory is 1.20 times as much`."""
    parts = []
    if answer.time is not None:
        parts.append(f"training takes {times(answer.time, 'as long')}")
    if answer.memory is not None:
        parts.append(f"peak memory is {times(answer.memory, 'as much')}")
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def times(ratio: Interval, what: str) -> str:
    """A ratio with its interval, where there is one."""
    text = f"{ratio.mean:.2f} times {what}"
    return f"{text} ({ratio.low:.2f} to {ratio.high:.2f})" if math.isfinite(ratio.high) else text


def basis(comparison: Comparison) -> list[str]:
    """What the number is, and the runs that it rests on."""
    runs = [run for group in comparison.groups for run in group.runs]
    seeds = [len(result.by_seed) for result in comparison.results]
    each = str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    groups = len(comparison.groups)
    factors = {step.factor for effect in comparison.factors for step in effect.steps}
    of = (
        f"combination{'s' * (groups > 1)} of {len(factors)} factors"
        if factors
        else f"variant{'s' * (groups > 1)}"
    )
    finished = sum(run.finished for run in runs)
    text = (
        f"Rests on {finished} finished runs: {groups} {of}, {each} seed{'s' * (each != '1')} each. A seed "
        "is a repetition with other random numbers; differences are taken between runs of the same seed."
    )
    return [f"Measured is {measured(comparison)}.", text]


def measured(comparison: Comparison) -> str:
    """`validation accuracy: the share of 1,000 held-out problems solved, at the last of 16 iterations`."""
    finished = [run for group in comparison.groups for run in group.finished.values()]
    last = {int(run.rows[-1]["iteration"]) for run in finished}
    when = "at the end of training"
    if len(last) == 1:
        when = f"after {(n := last.pop())} iteration{'s' * (n != 1)} of training"
    name, of = readable(comparison.metric), f"{comparison.problems:,} " if comparison.problems else ""
    sampled = re.search(r"_pass@(\d+)$", comparison.metric)
    if sampled:
        what = f"the share of {of}held-out problems that at least one of {sampled[1]} responses solves, "
    elif comparison.problems or comparison.metric == ACCURACY:
        what = f"the share of {of}held-out problems solved, "
    else:
        what = ""
    return f"{name}: {what}{when}" if what else f"{name} {when}"


def failed(comparison: Comparison) -> str:
    """How many runs are in no number; empty if all are."""
    runs = [run for group in comparison.groups for run in group.runs]
    missing = sum(bool(run.problem) for run in runs)
    if not missing:
        return ""
    did = "did not come to its end: it is" if missing == 1 else "did not come to their end: they are"
    return f"{missing} of {len(runs)} runs {did} in no number here."


def headline(answers: Sequence[Answer]) -> str:
    """`7 questions: 2 make a difference, 3 do not matter, 2 not settled`."""
    asked = [answer for answer in answers if answer.kind != "interaction"]
    if not asked:
        return ""
    words = {
        "different": ("makes a difference", "make a difference"),
        "equivalent": ("does not matter", "do not matter"),
        "open": ("is not settled", "are not settled"),
    }
    of = {"equivalent": "equivalent", "higher": "different", "lower": "different"}
    counted = Counter(of.get(answer.verdict or "", "open") for answer in asked)
    parts = [f"{counted[key]} {forms[counted[key] > 1]}" for key, forms in words.items() if counted[key]]
    many = "question" if len(asked) == 1 else "questions"
    return f"{len(asked)} {many}: {', '.join(parts)}."


def how_to_read(comparison: Comparison, answers: Sequence[Answer]) -> list[str]:
    """What the words of the answers mean."""
    if not answers:
        return []
    if comparison.margin is not None:
        margin = (
            f"Does not matter: shown to be smaller than {comparison.margin:g}, the margin that this study "
            "has declared. Not settled: neither is shown."
        )
    else:
        margin = (
            "Not settled: no difference is shown, which does not show that there is none. For that, declare "
            "the largest difference that does not matter (margin in a study, --margin of compare)."
        )
    notes = [
        "95 % interval: where the true effect lies; all of a kind are right at once with 95 %. Verdicts are "
        "tested one after another, which settles a little more than the intervals show.",
        f"Better, worse, higher, lower: a difference that chance does not explain. {margin}",
    ]
    if any(answer.kind == "effect" for answer in answers):
        notes.append("The effect of a factor is the mean over all combinations of the others.")
    words = glossary([question(comparison), *(name_of(answer) for answer in answers), comparison.base.name])
    return [*notes, *([f"Words. {words}"] if words else [])]
