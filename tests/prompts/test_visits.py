"""The order in which training visits prompts: with a curriculum, and instead of groups without a signal."""

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import pytest
import torch
from helpers.prompt_sets import Numbered, answered, doubled, records, verdicts
from torch import Tensor
from typing_extensions import override

from grpo_pl.prompts import Curriculum, DifficultyWindow, NoPositiveResampling, PassRates, iteration_prompts
from grpo_pl.prompts.pass_rates import counts
from grpo_pl.prompts.visits import Visits
from grpo_pl.types import Prompt, only_here

Ability = Callable[[int, Prompt], bool]
"""Whether the response to a prompt is right in an iteration."""


@final
class Fixed(Curriculum):
    """Chances by row, whatever the pass rates."""

    def __init__(self, *by_row: float) -> None:
        super().__init__()
        self.by_row = by_row

    @override
    def chances(self, rates: PassRates) -> Tensor:
        return torch.tensor(self.by_row, dtype=torch.float64)


def visits(size: int = 12, per_iteration: int = 4, **options: Any) -> Visits:
    return Visits(Numbered(size), prompts_per_iteration=per_iteration, seed=3, **options)


def run(made: Visits, iterations: range, right: Ability) -> list[list[int]]:
    """The rows that each iteration visits, the verdicts being recorded."""
    seen = []
    for iteration in iterations:
        prompts = made.of(iteration)
        seen.append([prompt.row for prompt in prompts])
        made.record(iteration, answered(prompts), verdicts([right(iteration, p) for p in prompts]), only_here)
    return seen


def by_row(ability: Sequence[bool]) -> Ability:
    return lambda _, prompt: ability[prompt.row]


def odd_then_even(iteration: int, prompt: Prompt) -> bool:
    return (prompt.row + iteration // 5) % 3 > 0


# --------------------------------------------------------------------------------------------- a curriculum


def test_chances_of_1_are_the_plain_order_with_the_plain_seeds() -> None:
    made = visits(curriculum=DifficultyWindow(keep_easy=1.0, keep_hard=1.0))
    for iteration in range(30):
        prompts = made.of(iteration)
        plain = iteration_prompts(made.prompts, iteration=iteration, prompts_per_iteration=4, seed=3)
        assert prompts == plain
        assert [p.row for p in prompts] == [p.row for p in plain]
        made.record(iteration, answered(prompts), verdicts([True] * 4), only_here)
    assert visits().of(7) == iteration_prompts(made.prompts, iteration=7, prompts_per_iteration=4, seed=3)


def test_easy_and_hard_prompts_are_drawn_as_often_as_the_window_says() -> None:
    """Row 0 and 1 are easy, 2 and 3 hard; of two responses to the others one is right."""
    made = visits(12, 4, curriculum=DifficultyWindow(keep_easy=0.2, keep_hard=0.5))
    drawn: Counter[int] = Counter()
    for iteration in range(300):
        prompts = made.of(iteration)
        drawn.update(prompt.row for prompt in prompts)
        rights = [r for p in prompts for r in (p.row < 2 or p.row > 3, p.row < 2)]
        metrics = made.record(iteration, answered(prompts, 2), verdicts(rights), only_here)
    turns = 1200 / (8 + 2 * 0.2 + 2 * 0.5)
    expected = [0.2 * turns] * 2 + [0.5 * turns] * 2 + [turns] * 8
    assert [drawn[row] for row in range(12)] == pytest.approx(expected, abs=3)
    assert metrics == {
        "rollout/prompts_visited": 1.0,
        "rollout/prompts_easy": pytest.approx(2 / 12),
        "rollout/prompts_hard": pytest.approx(2 / 12),
        "rollout/pass_rate": pytest.approx((2 * 1 + 2 * 0 + 8 * 0.5) / 12),
    }


def test_before_any_visit_there_is_no_pass_rate() -> None:
    made = visits(12, 4, curriculum=DifficultyWindow())
    unknown = records([{"correct": None}] * 4)
    metrics = made.record(0, answered(made.of(0)), unknown, only_here)
    assert metrics["rollout/prompts_visited"] == 0.0
    assert "rollout/pass_rate" not in metrics


def test_what_the_policy_can_do_is_never_drawn_again_until_that_is_everything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = visits(12, 4, curriculum=NoPositiveResampling())
    able = [row < 6 for row in range(12)]
    first, later = run(made, range(3), by_row(able)), run(made, range(3, 20), by_row(able))
    assert Counter(row for rows in first for row in rows) == Counter(range(12))
    assert {row for rows in later for row in rows} == set(range(6, 12))
    assert not caplog.text
    made = visits(12, 4, curriculum=NoPositiveResampling())
    everything = [row for rows in run(made, range(9), by_row([True] * 12)) for row in rows]
    assert Counter(everything) == Counter(dict.fromkeys(range(12), 3))
    assert caplog.text.count("data.curriculum would draw no prompt any more: all are drawn again") == 1


def test_a_prompt_that_nobody_has_answered_is_always_drawn() -> None:
    made = visits(12, 4, curriculum=Fixed(*[0.0] * 11, 1.0))
    rows = run(made, range(4), by_row([True] * 12))
    assert sorted(row for iteration in rows[:3] for row in iteration) == list(range(12))
    assert rows[3] == [11] * 4


def summed(total: Tensor, _: Tensor) -> Tensor:
    """The sum over ranks, which the caller knows."""
    return total


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_visits_the_same_prompts(ranks: int) -> None:
    window = DifficultyWindow(keep_easy=0.25, keep_hard=0.5)
    alone = visits(12, 4, curriculum=window)
    together = [visits(12, 4, curriculum=window) for _ in range(ranks)]
    for iteration in range(40):
        parts = [one.of(iteration, rank, ranks) for rank, one in enumerate(together)]
        prompts = alone.of(iteration)
        assert [prompt for part in parts for prompt in part] == prompts
        rights = [odd_then_even(iteration, prompt) for prompt in prompts]
        alone.record(iteration, answered(prompts), verdicts(rights), only_here)
        total = counts(list(zip(prompts, rights, strict=True)), 12)
        for one, part in zip(together, parts, strict=True):
            mine = verdicts([odd_then_even(iteration, prompt) for prompt in part])
            one.record(iteration, answered(part), mine, partial(summed, total))
    assert alone.rates.right.tolist() == together[-1].rates.right.tolist()


def test_pass_rates_are_summed_over_ranks() -> None:
    made = visits()
    prompts = made.of(0)
    made.record(0, answered(prompts), verdicts([True, False, True, True]), doubled)
    assert made.rates.responses[[p.row for p in prompts]].tolist() == [2] * 4
    assert made.rates.right[[p.row for p in prompts]].tolist() == [2, 0, 2, 2]


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_an_iteration_depends_on_the_verdicts_before_the_delay_alone(delay: int) -> None:
    """And it is the same whether it is asked for as early as an engine that samples ahead asks, or late."""
    window, asked = DifficultyWindow(keep_easy=0.0, keep_hard=0.5), 9

    def until(iterations: int, changed: int, ahead: int) -> list[int]:
        made = visits(12, 4, curriculum=window, delay=delay)

        def right(iteration: int, prompt: Prompt) -> bool:
            return odd_then_even(iteration, prompt) != (iteration == changed)

        for iteration in range(iterations):
            for later in range(iteration, iteration + ahead + 1):
                made.of(later)
            run(made, range(iteration, iteration + 1), right)
        return [prompt.row for prompt in made.of(asked)]

    last = asked - delay - 1
    plain = until(asked, changed=-1, ahead=0)
    assert until(asked, changed=-1, ahead=delay) == plain
    assert until(last + 1, changed=-1, ahead=delay) == plain, "asked as soon as the verdicts are there"
    for later in range(last + 1, asked):
        assert until(asked, changed=later, ahead=delay) == plain
    assert any(until(asked, changed=before, ahead=0) != plain for before in range(last + 1))


def test_the_delay_of_a_curriculum_goes_before_that_of_the_engine() -> None:
    assert visits(curriculum=DifficultyWindow(delay=3), delay=1).delay == 3
    assert visits(curriculum=DifficultyWindow(), delay=1).delay == 1


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 11])
def test_a_state_goes_on_as_the_run_that_saved_it(stop: int, delay: int) -> None:
    def fresh() -> Visits:
        return visits(12, 4, curriculum=DifficultyWindow(keep_easy=0.25), delay=delay)

    def replaced(made: Visits, iteration: int) -> list[Prompt]:
        return made.instead(iteration, 1, [1 + iteration % 3])

    whole, first, state = fresh(), fresh(), fresh().state_dict()
    for iteration in range(20):
        others = replaced(whole, iteration)
        rows = run(whole, range(iteration, iteration + 1), odd_then_even)
        if iteration == stop:
            first = fresh()
            first.of(0)  # an engine is checked with it before the state is there
            first.load_state_dict(state)
        assert replaced(first, iteration) == others
        assert run(first, range(iteration, iteration + 1), odd_then_even) == rows
        state = copy.deepcopy(first.state_dict())


def test_a_curriculum_that_begins_in_the_middle_of_a_run_knows_its_pass_rates() -> None:
    plain = visits()
    run(plain, range(3), by_row([True] * 6 + [False] * 6))
    made = visits(curriculum=NoPositiveResampling())
    made.load_state_dict(plain.state_dict())
    assert {row for rows in run(made, range(3, 8), by_row([True] * 6 + [False] * 6)) for row in rows} == set(
        range(6, 12)
    )


# ------------------------------------------------------------------------------- instead of silent groups


def simulated(size: int, per_iteration: int, iterations: int, ranks: int) -> list[tuple[set[int], list[int]]]:
    """For each iteration its prompts, and those of up to two more rounds in which any number is silent."""
    made, draw = [visits(size, per_iteration) for _ in range(ranks)], random.Random(0)
    seen = []
    for iteration in range(iterations):
        own = {prompt.row for prompt in made[0].of(iteration)}
        instead: list[int] = []
        for again in (1, 2):
            shares = [draw.randint(1, per_iteration // ranks) for _ in range(ranks)]
            for rank, one in enumerate(made):
                prompts = one.instead(iteration, again, shares, rank)
                assert len(prompts) == shares[rank]
                instead += [prompt.row for prompt in prompts]
        seen.append((own, instead))
    return seen


@pytest.mark.parametrize("ranks", [1, 4])
def test_other_prompts_are_distinct_and_none_of_the_iteration(ranks: int) -> None:
    for own, instead in simulated(40, 8, 200, ranks):
        assert len(set(instead)) == len(instead)
        assert not own & set(instead)


@pytest.mark.parametrize("ranks", [1, 4])
def test_other_prompts_come_one_permutation_after_the_other(ranks: int) -> None:
    """As many as a pass over 5,000 has: all distinct. Without that, 200 iterations had 774 of 1,029."""
    stream = [row for _, instead in simulated(5000, 8, 200, ranks) for row in instead]
    assert 1000 < len(stream) == len(set(stream))
    often = Counter(row for _, instead in simulated(40, 8, 400, ranks) for row in instead)
    fewest, most = min(often.values()), max(often.values())
    assert len(often) == 40
    assert most - fewest < 0.35 * most, "a prompt misses the pass in which it is in the iteration itself"


def test_where_there_are_no_others_the_same_come_again() -> None:
    made = visits(6, 4)
    rows = [prompt.row for prompt in made.instead(0, 1, [8])]
    own = {prompt.row for prompt in made.of(0)}
    assert set(rows[:2]) == set(range(6)) - own
    assert sorted(rows[2:]) == list(range(6))


def test_every_other_prompt_has_a_seed_of_its_own() -> None:
    made = visits(40, 8)
    seeds = [p.seed for i in range(20) for again in (1, 2) for p in made.instead(i, again, [3, 2], 1)]
    assert len(set(seeds)) == 80
    assert not set(seeds) & {p.seed for i in range(20) for p in made.of(i)}


def test_a_curriculum_chooses_the_others_too() -> None:
    made = visits(12, 4, curriculum=NoPositiveResampling())
    run(made, range(3), by_row([True] * 6 + [False] * 6))
    own = {prompt.row for prompt in made.of(3)}
    assert {prompt.row for prompt in made.instead(3, 1, [2])} == set(range(6, 12)) - own
