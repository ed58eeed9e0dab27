"""What counts as right, and what is kept of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.prompt_sets import Numbered, answered, records

from grpo_pl.prompts.pass_rates import PassRates, Right, counts, write_pass_rates
from grpo_pl.types import Rollout, ScoredSamples

PROMPTS = Numbered(4).rows
REWARDS = [
    {"correct": 1.0, "short": 0.0},
    {"correct": 0.0, "short": 0.6},
    {"correct": 0.5, "short": None},
    {"correct": None, "short": 1.0},
]


def scored(rollout: Rollout, *rewards: dict[str, float | None]) -> Rollout:
    """The rollout as dynamic sampling scores it, every weight being 1."""
    by_name = {name: [given[name] for given in rewards] for name in rewards[0]}
    known = torch.tensor([None not in given.values() for given in rewards])
    total = torch.tensor([sum(reward or 0.0 for reward in given.values()) for given in rewards])
    return replace(
        rollout,
        rewards=ScoredSamples(
            by_name=by_name,
            total=torch.where(known, total, 0.0),
            weighted={},
            outcome=None,
            steps=[[]] * len(rewards),
            scored=known,
        ),
    )


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        (Right(), [True, True, None, None]),
        (Right(by="correct"), [True, False, False, None]),
        (Right(by="correct", threshold=0.4), [True, False, True, None]),
        (Right(by="short", threshold=0.6), [False, False, None, True]),
    ],
)
def test_a_response_is_right_above_the_threshold_and_unknown_where_the_reward_abstained(
    right: Right, expected: list[bool | None]
) -> None:
    rollout = answered(PROMPTS[:2], group_size=2)
    found = right.verdicts(rollout, records(REWARDS))
    assert [verdict for _, verdict in found] == expected
    assert [prompt.row for prompt, _ in found] == [0, 0, 1, 1]
    besides = replace(rollout, besides=[scored(rollout, *REWARDS)])
    assert right.verdicts(besides) == found, "as dynamic sampling scored them"


def test_all_rounds_of_dynamic_sampling_count_once_and_greedy_responses_do_not() -> None:
    first = scored(answered(PROMPTS[:2]), {"correct": 1.0}, {"correct": 0.0})
    again = scored(answered(PROMPTS[2:]), {"correct": 0.0}, {"correct": 1.0})
    greedy = answered(PROMPTS[:2])
    learned_from = replace(first, besides=[first, again, greedy])
    found = Right().verdicts(learned_from, records([{"correct": 1.0}, {"correct": 1.0}]))
    assert [(prompt.row, right) for prompt, right in found] == [(0, True), (1, False), (2, False), (3, True)]


def test_pass_rates_by_hand() -> None:
    rates = PassRates.none(3)
    assert rates.known.tolist() == [False] * 3
    a, b, _ = PROMPTS[:3]
    rates.add(*counts([(a, True), (a, False), (b, False), (b, None)], 3))
    rates.add(*counts([(a, True), (a, True), (a, True), (a, False)], 3))
    rates.add(*counts([(b, None)], 3))
    assert rates.visits.tolist() == [2, 1, 0]
    assert rates.responses.tolist() == [6, 1, 0]
    assert rates.right.tolist() == [4, 0, 0]
    assert rates.overall[:2].tolist() == [4 / 6, 0.0]
    assert rates.recent[:2].tolist() == [3 / 4, 0.0]
    assert rates.overall[2].isnan()
    assert rates.known.tolist() == [True, True, False]


def test_the_table_has_a_line_for_each_prompt_that_was_answered(tmp_path: Path) -> None:
    rates = PassRates.none(3)
    rates.add(torch.tensor([0, 8, 0]), torch.tensor([0, 8, 0]))
    rates.add(torch.tensor([0, 8, 0]), torch.tensor([0, 1, 0]))
    prompts = [replace(prompt, text='say "a,\nb"') for prompt in PROMPTS[:3]]
    write_pass_rates(tmp_path / "pass_rates.csv", rates, prompts)
    assert (tmp_path / "pass_rates.csv").read_text() == (
        "row,visits,responses,right,pass_rate,recent_pass_rate,prompt\n"
        '1,2,16,9,0.5625,0.125,"say ""a,\nb"""\n'
    )
