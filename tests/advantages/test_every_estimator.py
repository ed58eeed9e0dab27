"""What every estimator does: invariances, degenerate groups, ranks, and what it refuses."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from helpers.exact import close, eighths, few
from helpers.feedbacks import IDS, REWARDS, assign, outcomes, rewards_of_two_groups
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.advantages import (
    GAE,
    GDPO,
    OPO,
    AdvantageEstimator,
    GroupRelative,
    LeaveOneOut,
    MaxRL,
    PassAtK,
    ProcessGroupRelative,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
    WinRate,
)
from grpo_pl.advantages.base import check_choice
from grpo_pl.config.components import implementations
from grpo_pl.module import check_advantage_sources
from grpo_pl.rewards.base import ProcessReward
from grpo_pl.rewards.rules import Format
from grpo_pl.rewards.transforms import Clip
from grpo_pl.types import Feedback

VARIANTS = [
    *(
        GroupRelative(scale=scale, ddof=ddof, eps=0.0)
        for scale in ("group", "batch", "none")
        for ddof in (0, 1)
    ),
    GroupRelative(leave_one_out=True, eps=0.0),
    GDPO(eps=0.0, batch_eps=0.0),
    ProcessGroupRelative(eps=0.0),
    PassAtK(2),
]
EVERY = sorted(implementations(AdvantageEstimator) - {*map(type, VARIANTS)}, key=lambda cls: cls.__name__)
ESTIMATORS = [*VARIANTS, *(cls() for cls in EVERY if cls.min_group_size > 1)]
"""Those that compare the responses of a group, in every file of advantages/."""
ALONE = [cls for cls in EVERY if cls.min_group_size == 1]
"""Those that do not."""


def test_the_estimators_are_found_in_their_folder() -> None:
    assert {LeaveOneOut, OPO, ReinforcePlusPlusBaseline, WinRate} <= {*map(type, ESTIMATORS)}
    assert {GAE, ReMax, ReinforcePlusPlus} <= {*ALONE}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e-8, 16777217.3])
@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_a_group_without_variance_gets_exactly_0_in_float32_whatever_rounding_says(
    estimator: AdvantageEstimator, reward: float, size: int
) -> None:
    rewards, ids = [reward] * size + [0.1, 0.2, 0.4], [4] * size + [5, 5, 5]
    got, _ = assign(estimator, rewards, ids, dtype=torch.float32)
    assert (got[:size] == 0).all()
    assert (got[size:] != 0).any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_with_one_scored_response_gets_0(estimator: AdvantageEstimator) -> None:
    got, _ = assign(estimator, [3.0, 9.0, 1.0, 2.0], [0, 0, 1, 1], scored=[True, False, True, True])
    assert got[:2].tolist() == [0.0, 0.0]
    assert (got[2:] != 0).any()
    assert assign(estimator, [5.0], [0])[0].tolist() == [0.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("unknown", [0.0, 1e6, math.nan])
def test_an_unscored_response_gets_0_and_the_others_what_they_would_get_without_it(
    estimator: AdvantageEstimator, unknown: float
) -> None:
    rewards, ids = [unknown, *REWARDS[:3], unknown, *REWARDS[3:]], [9, *IDS[:3], 2, *IDS[3:]]
    scored, lengths = [False, True, True, True, False, True, True], [3, 1, 2, 3, 1, 4, 2]
    got, _ = assign(estimator, rewards, ids, scored, lengths)
    assert got[[0, 4]].tolist() == [0.0, 0.0]
    close(got[[1, 2, 3, 5, 6]], assign(estimator, REWARDS, IDS, lengths=[1, 2, 3, 4, 2])[0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_iteration_without_a_single_scored_response_has_no_advantages(
    estimator: AdvantageEstimator,
) -> None:
    assert (assign(estimator, [math.nan, 1.0, 2.0], [0, 0, 1], scored=[False] * 3)[1].advantages == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@few
@given(st.permutations(range(4)), st.lists(eighths, min_size=4, max_size=4))
def test_permuting_a_group_permutes_its_advantages_and_changes_nothing_else(
    estimator: AdvantageEstimator, order: list[int], group: list[float]
) -> None:
    other, ids, lengths = [1.0, 5.0, 2.0], [1, 1, 1, 1, 0, 0, 0], [1, 2, 3, 4, 1, 2, 3]
    straight, _ = assign(estimator, group + other, ids, lengths=lengths)
    moved = [lengths[i] for i in order] + lengths[4:]
    permuted, _ = assign(estimator, [group[i] for i in order] + other, ids, lengths=moved)
    close(permuted[:4], straight[:4][order], tolerance=1e-9)
    close(permuted[4:], straight[4:], tolerance=1e-9)


@pytest.mark.parametrize("estimator", [one for one in ESTIMATORS if not isinstance(one, MaxRL)])
@few
@given(rewards_of_two_groups, st.integers(-50, 50))
def test_a_constant_added_to_all_rewards_changes_nothing(
    estimator: AdvantageEstimator, rows: list[tuple[float, int, bool]], shift: int
) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    shifted, _ = assign(estimator, [reward + shift for reward in rewards], ids, scored)
    close(shifted, assign(estimator, rewards, ids, scored)[0], tolerance=1e-9)


@few
@given(rewards_of_two_groups, st.sampled_from([1e-3, 0.3, 7.0, 1e4]), st.sampled_from([0, 1]))
def test_with_scale_group_and_eps_0_the_unit_of_the_reward_does_not_matter(
    rows: list[tuple[float, int, bool]], unit: float, ddof: int
) -> None:
    rewards, ids, scored = map(list, zip(*rows, strict=True))
    estimator = GroupRelative(scale="group", ddof=ddof, eps=0.0)
    scaled, _ = assign(estimator, [unit * reward for reward in rewards], ids, scored)
    close(scaled, assign(estimator, rewards, ids, scored)[0], tolerance=1e-9)


def on_two_ranks(estimator: AdvantageEstimator, given_all: Feedback, cut: int) -> Tensor:
    """The advantages of the rows before and after `cut`, each on a rank (a thread) of its own."""
    barrier, slots = Barrier(2), [torch.zeros(()), torch.zeros(())]

    def run(rank: int) -> Tensor:
        def sum_over_ranks(values: Tensor) -> Tensor:
            slots[rank] = values
            barrier.wait(timeout=10)
            total = slots[0] + slots[1]
            barrier.wait(timeout=10)
            return total

        rows = slice(None, cut) if rank == 0 else slice(cut, None)
        of_rows = {
            name: value[rows] if isinstance(value, Tensor) else value
            for name, value in vars(given_all).items()
        }
        of_rows["by_name"] = {name: value[rows] for name, value in given_all.by_name.items()}
        return estimator(Feedback(**of_rows | {"sum_over_ranks": sum_over_ranks})).advantages

    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(run, (0, 1))))


@pytest.mark.parametrize(
    "estimator",
    [
        *ESTIMATORS,
        ReinforcePlusPlus(gamma=0.9),
        ReinforcePlusPlusBaseline(over="tokens"),
        GDPO(over="tokens"),
        GAE(),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_two_ranks_give_the_advantages_of_one(estimator: AdvantageEstimator) -> None:
    given_all = outcomes([1.0, 4.0, 2.0, 7.0, 7.5, 3.0], [0, 0, 1, 1, 2, 2], [1, 4, 2, 3, 3, 1])
    given_all.scored = torch.tensor([True, True, True, True, True, False])
    given_all.values = torch.where(given_all.loss_mask, 0.25, 0.0).double()
    given_all.old_logprobs, given_all.ref_logprobs = -given_all.values, given_all.values.cumsum(-1)
    close(on_two_ranks(estimator, given_all, 2), estimator(given_all).advantages)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupRelative(ddof=2), r"^ddof=2: expected 0 .* or 1"),
        (lambda: GroupRelative(eps=-0.5), r"^eps=-0\.5: expected 0 or more"),
        (lambda: GAE(gamma=1.5), r"^gamma=1\.5: expected a number in \[0, 1\]"),
        (lambda: GAE(gamma=-0.1), r"^gamma=-0\.1: expected"),
        (lambda: GAE(lam=1.01), r"^lam=1\.01: expected"),
        (lambda: GAE(lam=-1.0), r"^lam=-1\.0: expected"),
        (lambda: GAE(lam_value=1.5), r"^lam_value=1\.5: expected a number in \[0, 1\]"),
        (lambda: check_choice("over", "all", "a", "b"), r"^over=all: expected one of a, b"),
        (lambda: GDPO(batch_eps=-1.0), r"^batch_eps=-1\.0: expected 0 or more"),
        (
            lambda: ReinforcePlusPlus(gamma=2.0),
            r"^gamma=2\.0: expected a number in \[0, 1\]",
        ),
        (lambda: ProcessGroupRelative(ddof=3), r"^ddof=3: expected 0 .* or 1"),
        (lambda: PassAtK(1), r"^k=1: expected 2 or more; .* LeaveOneOut"),
    ],
)
def test_a_bad_argument_is_refused_with_its_key_and_what_is_expected(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_what_each_estimator_needs() -> None:
    kinds = implementations(AdvantageEstimator)
    assert {kind for kind in kinds if kind.needs_critic} == {GAE}
    assert {kind for kind in kinds if kind.needs_greedy} == {ReMax}
    assert {kind for kind in kinds if kind.needs_steps} == {ProcessGroupRelative}
    assert {kind for kind in kinds if kind.reads_named_rewards} == {GDPO}
    assert {GAE, ReMax, ReinforcePlusPlus} <= {kind for kind in kinds if kind.min_group_size == 1}


def test_the_limits_of_every_argument_are_legal() -> None:
    GroupRelative(ddof=0, eps=0.0)
    GAE(gamma=0.0, lam=0.0)
    GAE(gamma=1.0, lam=1.0)
    ReinforcePlusPlus(gamma=0.0)
    PassAtK(2)


class HalfSteps(ProcessReward):
    def score_steps(self, samples: Sequence[object]) -> list[list[object]]:
        return [[] for _ in samples]


def test_process_supervision_without_a_process_reward_is_refused() -> None:
    rule = Format(pattern="x")
    message = r"model\.advantage ProcessGroupRelative needs rewards of steps: .* model\.rewards"
    for rewards in ({"rule": rule}, {"rule": rule, "steps": HalfSteps(weight=0.0)}):
        with pytest.raises(ValueError, match=message):
            check_advantage_sources(ProcessGroupRelative(), rewards, [])
    check_advantage_sources(ProcessGroupRelative(), {"rule": rule, "steps": HalfSteps()}, [])


def test_what_changes_the_sum_of_the_rewards_is_refused_where_each_is_read_on_its_own() -> None:
    rewards = {"rule": Format(pattern="x")}
    with pytest.raises(ValueError, match=r"model\.reward_transforms change the sum .* GDPO"):
        check_advantage_sources(GDPO(), rewards, [Clip()])
    check_advantage_sources(GDPO(), rewards, [])
    check_advantage_sources(GroupRelative(), rewards, [Clip()])
