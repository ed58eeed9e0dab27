"""Rewards of steps: values by hand, and the outcome as a step at the end."""

import math
from dataclasses import replace

import torch
from helpers.exact import F64, close, few
from helpers.feedbacks import feedback, outcomes, rewards_of_two_groups, trajectories
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.advantages import GroupRelative, ProcessGroupRelative


def test_process_rewards_by_hand() -> None:
    # steps of the group: 1, 3 and 2; mean 2, std 1; z = -1, 1 and 0
    given_two = feedback(
        torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 2.0, 0.0, 0.0]], dtype=F64),
        torch.tensor([[False, True, True, True, True], [False, True, True, True, False]]),
    )
    given_two.step_ends = given_two.rewards != 0
    got = ProcessGroupRelative(eps=0.0)(given_two).advantages
    close(got, [[0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    # in another group the same numbers are nobody's: a group of equal steps adds 0
    alone = replace(given_two, group_ids=torch.tensor([0, 1]))
    alone.rewards = torch.where(given_two.rewards == 3, 1.0, given_two.rewards)
    assert (ProcessGroupRelative()(alone).advantages == 0).all()


def test_a_step_with_score_0_counts_in_the_statistics() -> None:
    given_two = feedback(
        torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]], dtype=F64),
        torch.tensor([[False, True, True]] * 2),
    )
    given_two.step_ends = given_two.loss_mask
    # steps 0, 1, 0, 2: mean 3/4, squared deviations 9/16 + 1/16 + 9/16 + 25/16 = 11/4, over 4: 11/16
    std = math.sqrt(11 / 16)
    got = ProcessGroupRelative(ddof=0, eps=0.0)(given_two).advantages
    close(got, [[0.0, -0.5 / std, 0.25 / std], [0.0, 0.5 / std, 1.25 / std]])


def test_what_is_earned_outside_of_steps_is_an_outcome_for_all_tokens() -> None:
    given_two = feedback(
        torch.tensor([[0.0, 1.0, 0.0, 6.0], [0.0, 3.0, 0.0, 2.0]], dtype=F64),
        torch.tensor([[False, True, True, True]] * 2),
    )
    given_two.step_ends[:, 1] = True
    # steps 1 and 3, outcomes 6 and 2: each +-1 / sqrt(2), and the step's share on the first token alone
    z = 1 / math.sqrt(2)
    got = ProcessGroupRelative(eps=0.0)(given_two).advantages
    close(got, [[0.0, 0.0, z, z], [0.0, 0.0, -z, -z]])


@few
@given(rewards_of_two_groups, st.sampled_from([0, 1]))
def test_one_step_at_the_end_of_each_response_is_an_outcome(
    rows: list[tuple[float, int, bool]], ddof: int
) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    given_all = outcomes(rewards, ids, [1 + n % 3 for n in range(len(rows))])
    given_all.scored = torch.tensor(scored)
    expected = GroupRelative(ddof=ddof)(given_all).advantages
    close(ProcessGroupRelative(ddof=ddof)(given_all).advantages, expected)
    last = torch.tensor([1 + n % 3 for n in range(len(rows))])
    given_all.step_ends[torch.arange(len(rows)), last] = True
    close(ProcessGroupRelative(ddof=ddof)(given_all).advantages, expected)


def test_the_steps_of_an_unscored_response_enter_no_statistic() -> None:
    rewards, _, mask, _ = trajectories()
    scored = torch.tensor([True, False, True, True])
    rewards[1] = math.nan
    given_all = feedback(rewards, mask, scored=scored, step_ends=mask)
    alone = feedback(rewards[scored], mask[scored], step_ends=mask[scored])
    got = ProcessGroupRelative()(given_all).advantages
    assert (got[1] == 0).all()
    close(got[scored], ProcessGroupRelative()(alone).advantages)
