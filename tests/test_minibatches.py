"""How a rollout becomes optimizer steps. The contracts of the whole loop stand in test_fit.py."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from helpers.exact import few
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.minibatches import Step, UpdateSchedule, first_pass, micro_batches
from grpo_pl.types import Experience, Prompt, Rollout, SampleRecord, TokenScores


def flat(step: Step) -> list[int]:
    return [row for rows in step for row in rows]


# --------------------------------------------------------------------------------------------- UpdateSchedule


@few
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 5), st.data())
def test_an_epoch_has_every_row_once_in_equal_minibatches_of_exactly_k_micro_batches(
    minibatches: int, micro: int, spare: int, iteration: int, data: st.DataObject
) -> None:
    size = micro + spare
    lengths = data.draw(
        st.lists(st.integers(1, 50), min_size=minibatches * size, max_size=minibatches * size)
    )
    schedule = UpdateSchedule(minibatches=minibatches, update_epochs=2, micro_batches=micro, seed=11)
    for epoch in range(2):
        steps = schedule.epoch(lengths, range(len(lengths)), iteration, epoch)
        assert len(steps) == minibatches
        assert {len(step) for step in steps} == {micro}
        assert {len(flat(step)) for step in steps} == {size}
        assert all(rows for step in steps for rows in step)
        assert sorted(row for step in steps for row in flat(step)) == list(range(len(lengths)))


@few
@given(st.lists(st.integers(1, 4), min_size=4, max_size=12), st.integers(1, 4), st.integers(0, 5))
def test_rows_that_cannot_be_divided_are_all_read_and_those_of_an_episode_together(
    rows_of: list[int], minibatches: int, iteration: int
) -> None:
    owners = [n for n, count in enumerate(rows_of) for _ in range(count)]
    schedule = UpdateSchedule(minibatches=minibatches, update_epochs=2, micro_batches=1, seed=11)
    steps = schedule.steps([3 + n for n in range(len(owners))], [0] * len(owners), iteration, owners)
    for epoch in (steps[:minibatches], steps[minibatches:]):
        assert sorted(row for step in epoch for row in flat(step)) == list(range(len(owners)))
        sizes = [len({owners[row] for row in flat(step)}) for step in epoch]
        assert sum(sizes) == len(rows_of), "no episode is in two steps"
        assert max(sizes) - min(sizes) <= 1


def composition(steps: Sequence[Step]) -> list[set[int]]:
    return [set(flat(step)) for step in steps]


def test_minibatches_follow_from_the_epoch_the_iteration_and_the_seed_alone() -> None:
    lengths = list(range(1, 33))

    def steps(seed: int, iteration: int, epoch: int) -> list[set[int]]:
        schedule = UpdateSchedule(minibatches=4, update_epochs=3, micro_batches=2, seed=seed)
        return composition(schedule.epoch(lengths, range(len(lengths)), iteration, epoch))

    calls = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1)]
    drawn = [steps(*call) for call in calls]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])
    assert drawn == [steps(*call) for call in calls]


def test_minibatches_are_random_and_only_micro_batches_are_sorted_by_length() -> None:
    lengths = [1] * 8 + [100] * 8
    schedule = UpdateSchedule(minibatches=2, update_epochs=1, micro_batches=2, seed=5)
    for iteration in range(6):
        for step in schedule.epoch(lengths, range(16), iteration, 0):
            long = [row for row in flat(step) if row >= 8]
            assert 0 < len(long) < 8  # neither minibatch has all the long rows
            # with m long and 8 - m short rows, halving the long ones costs 100 * ceil(m / 2) or apart 100 m
            costs = [len(rows) * max(lengths[row] for row in rows) for rows in step]
            assert max(costs) <= 100 * len(long)


def test_batches_per_iteration_counts_the_micro_batches_of_all_epochs() -> None:
    schedule = UpdateSchedule(minibatches=2, update_epochs=3, micro_batches=5, seed=0)
    assert schedule.batches_per_iteration == 30
    lengths = [3] * 20
    assert sum(len(step) for e in range(3) for step in schedule.epoch(lengths, range(20), 0, e)) == 30


# ----------------------------------------------------------------------------------------- cutting experience

LENGTHS = [3, 1, 5, 2, 4, 1]  # of the responses; prompts have two tokens


def experience(**columns: Any) -> Experience:
    """Six rows in which entry [n, t] of every column tells n and t."""
    steps = torch.arange(9)
    where = 10.0 * torch.arange(6)[:, None] + steps
    mask = (steps >= 2) & (steps < 2 + torch.tensor(LENGTHS)[:, None])
    record = SampleRecord(
        prompt="?",
        answer="5",
        response="5",
        response_tokens=1,
        truncated=False,
        rewards={},
        reward=1.0,
        advantage=0.5,
    )
    return Experience(
        token_ids=where.long(), loss_mask=mask, sampling_logprobs=where + 0.1, old_logprobs=where + 0.2,
        advantages=where + 0.3, temperature=0.7, metrics={"rollout/reward": 0.5}, records=[record], **columns,
    )  # fmt: skip


TENSORS = [f.name for f in fields(Experience) if "Tensor" in str(f.type) and "dict" not in str(f.type)]
OPTIONAL = [f.name for f in fields(Experience) if "Tensor" in str(f.type) and "None" in str(f.type)]


def test_select_takes_the_rows_in_order_and_drops_the_columns_that_only_longer_rows_need() -> None:
    where = 10.0 * torch.arange(6)[:, None] + torch.arange(9)
    shapes = {f.name: str(f.type) for f in fields(Experience) if f.name in OPTIONAL}
    columns = {name: where + i for i, name in enumerate(shapes)}
    columns = {n: c if "B T" in shapes[n] else c[:, 0] for n, c in columns.items()}
    columns = {n: torch.stack([c, c], -1) if "B T K" in shapes[n] else c for n, c in columns.items()}
    columns = {n: c.int() if "Int" in shapes[n] else c for n, c in columns.items()}
    whole = experience(**{n: c > 9 if "Bool" in shapes[n] else c for n, c in columns.items()})
    piece = whole.select([3, 0], num_tokens=7, num_sequences=9)
    assert piece.token_ids.tolist() == [
        [30, 31, 32, 33, 34],
        [0, 1, 2, 3, 4],
    ]  # 2 + 3 columns, of which row 3 needs 4
    for name in TENSORS:
        column = getattr(whole, name)[[3, 0]]
        assert torch.equal(getattr(piece, name), column[:, :5] if column.ndim > 1 else column), name
    assert (piece.num_tokens, piece.num_sequences, piece.temperature) == (7, 9, 0.7)
    assert (piece.metrics, piece.records) == ({}, [])


def test_select_cuts_what_terms_have_prepared_and_forgets_no_term() -> None:
    one, other = object(), object()
    where = 10 * torch.arange(6)[:, None] + torch.arange(9)
    prepared = {one: where > 20, other: where.float()}
    piece = experience(prepared=prepared).select([3, 0])
    assert piece.prepared.keys() == prepared.keys()
    assert all(torch.equal(column, prepared[term][[3, 0], :5]) for term, column in piece.prepared.items())


def test_select_loses_no_response_token() -> None:
    whole = experience()
    for rows in ([2], [1, 5], [4, 1, 3]):
        piece = whole.select(rows, num_tokens=1, num_sequences=1)
        assert piece.loss_mask.sum(-1).tolist() == [LENGTHS[row] for row in rows]
        assert piece.loss_mask.shape[1] == 2 + max(LENGTHS[row] for row in rows)


def test_a_column_that_the_run_does_not_have_stays_absent() -> None:
    piece = experience().select([0], num_tokens=1, num_sequences=1)
    assert (piece.ref_logprobs, piece.returns, piece.old_values) == (None, None, None)


STEPS = [[[2], [0, 1]], [[4, 3], [5]]]  # tokens 5 + 3 + 1 = 9 and 4 + 2 + 1 = 7


def test_each_micro_batch_knows_the_size_of_its_whole_optimizer_step() -> None:
    pieces = list(micro_batches(experience(), STEPS, lambda local: local))
    assert [(piece.num_tokens, piece.num_sequences) for piece in pieces] == [(9, 3), (9, 3), (7, 3), (7, 3)]
    assert [piece.token_ids[:, 0].tolist() for piece in pieces] == [[20], [0, 10], [40, 30], [50]]


def test_all_sequences_of_a_step_count_those_whose_tokens_a_mask_leaves_out() -> None:
    whole = experience()
    whole.kept = torch.zeros_like(whole.loss_mask)
    whole.kept[[0, 2]] = True
    pieces = list(micro_batches(whole, STEPS, lambda local: local))
    assert [piece.num_sequences for piece in pieces] == [2, 2, 0, 0]
    assert [piece.all_sequences for piece in pieces] == [3, 3, 3, 3]


def test_rows_of_one_episode_are_one_sequence_of_the_step() -> None:
    whole = experience(episodes=torch.tensor([0, 0, 1, 2, 2, 3]))
    whole.kept = torch.ones_like(whole.loss_mask)
    whole.kept[[0, 3, 4]] = False
    pieces = list(micro_batches(whole, [[[2], [0, 1]], [[4, 3], [5]]], lambda local: local))
    assert [piece.num_sequences for piece in pieces] == [2, 2, 1, 1]
    assert [piece.all_sequences for piece in pieces] == [2, 2, 2, 2]
    assert [piece.of_sequences(piece.loss_mask.sum(-1)).tolist() for piece in pieces] == [
        [5],
        [4, 4],
        [6, 6],
        [1],
    ]


def test_the_size_of_a_step_is_summed_over_ranks_in_one_call() -> None:
    asked = []

    def three_ranks_with_other_data(local: Tensor) -> Tensor:
        asked.append(local)
        return local + torch.tensor([[100, 6, 300, 8], [200, 6, 300, 8]])

    pieces = list(micro_batches(experience(), STEPS, three_ranks_with_other_data))
    assert [(piece.num_tokens, piece.num_sequences) for piece in pieces] == [
        (109, 9),
        (109, 9),
        (207, 9),
        (207, 9),
    ]
    assert [(piece.all_tokens, piece.all_sequences) for piece in pieces] == [
        (309, 11),
        (309, 11),
        (307, 11),
        (307, 11),
    ]
    assert len(asked) == 1


def test_only_the_first_micro_batch_of_an_iteration_carries_metrics_and_records() -> None:
    whole = experience()
    first, *others = micro_batches(whole, STEPS, lambda local: local)
    assert (first.metrics, first.records) == (whole.metrics, whole.records)
    assert all((piece.metrics, piece.records) == ({}, []) for piece in others)


@few
@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 99))
def test_the_pieces_of_a_schedule_hold_every_response_token_once_per_epoch(
    minibatches: int, micro: int, seed: int
) -> None:
    whole, epochs = experience(), 2
    schedule = UpdateSchedule(minibatches=minibatches, update_epochs=epochs, micro_batches=micro, seed=seed)
    steps = schedule.steps([2 + n for n in LENGTHS], [0] * 6, 0)
    pieces = list(micro_batches(whole, steps, lambda local: local))
    assert len(pieces) == schedule.batches_per_iteration
    seen = sorted(token for piece in pieces for token in piece.token_ids[piece.loss_mask].tolist())
    assert seen == sorted(whole.token_ids[whole.loss_mask].tolist() * epochs)
    for i, piece in enumerate(pieces):
        step = pieces[i // micro * micro : (i // micro + 1) * micro]
        assert piece.num_tokens == sum(int(part.loss_mask.sum()) for part in step)
        assert piece.num_sequences == sum(len(part.loss_mask) for part in step) == 6 // minibatches


# ------------------------------------------------------------------------------- what is cut and put together


def test_the_scores_of_micro_batches_assemble_to_those_of_the_whole() -> None:
    mask = experience().loss_mask
    whole = torch.where(mask, 10.0 * torch.arange(6)[:, None] + torch.arange(9), 0.0)
    rows = [[2, 4], [5, 0, 3], [1]]
    widths = [7, 5, 3]
    parts = [
        TokenScores(
            logprobs=whole[some, :width].double(),
            entropy=2 * whole[some, :width],
            values=-whole[some, :width],
        )
        for some, width in zip(rows, widths, strict=True)
    ]
    scores = TokenScores.assemble(parts, rows, like=whole)
    assert torch.equal(scores.logprobs, whole)
    assert torch.equal(scores.entropy, 2 * whole)
    assert torch.equal(scores.values, -whole)
    assert scores.logprobs.dtype == torch.float32
    nothing = TokenScores.assemble([], [], like=whole)
    assert torch.equal(nothing.logprobs, torch.zeros_like(whole))
    assert nothing.entropy is None
    assert nothing.values is None


def test_the_first_pass_ends_where_a_row_comes_again() -> None:
    once = [[[0, 1], [2]], [[3], [4, 5]]]
    assert first_pass(once) == once
    assert first_pass([*once, [[5, 0], [1]], [[2, 3], [4]]]) == once


def test_a_rollout_knows_the_lengths_of_its_sequences_and_shows_rewards_its_samples() -> None:
    # the example of grpo_pl.types: prompt [5, 6], responses [7, 2] and [8]
    prompt = Prompt(token_ids=[5, 6], text="What is 2 + 3?", answer="5")
    rollout = Rollout(
        token_ids=torch.tensor([[5, 6, 7, 2], [5, 6, 8, 0]]),
        loss_mask=torch.tensor([[False, False, True, True], [False, False, True, False]]),
        sampling_logprobs=torch.zeros(2, 4), group_ids=torch.tensor([0, 0]), prompts=[prompt, prompt],
        responses=["five", "6"], truncated=torch.tensor([False, True]), policy_version=0, temperature=1.0,
        token_ends=[[4, 4], [1]],
    )  # fmt: skip
    assert rollout.lengths == [4, 3]
    assert [(s.prompt, s.response, s.response_tokens, s.truncated) for s in rollout.samples] == [
        (prompt, "five", 2, False),
        (prompt, "6", 1, True),
    ]


def test_micro_batches_of_no_steps_are_no_pieces() -> None:
    with pytest.raises(StopIteration):
        next(micro_batches(experience(), [], lambda local: local))


def test_inactive_rows_are_left_out_but_every_micro_batch_keeps_one() -> None:
    whole = torch.arange(40.0).view(4, 10)
    mask = torch.ones(4, 10, dtype=torch.bool)
    mask[:, 0] = False
    experience = Experience(
        token_ids=whole.long(), loss_mask=mask, sampling_logprobs=whole, old_logprobs=whole,
        advantages=whole, temperature=1.0, active=torch.tensor([True, False, False, True]),
    )  # fmt: skip
    pieces = list(micro_batches(experience, [[[0, 1, 3], [2]]], lambda total: total))
    assert [piece.token_ids[:, 0].tolist() for piece in pieces] == [[0, 30], [20]]
    assert [(piece.num_tokens, piece.num_sequences) for piece in pieces] == [(36, 4), (36, 4)]
    assert [int(piece.read.sum()) for piece in pieces] == [18, 0]


def test_rows_of_a_group_stay_together_if_asked() -> None:
    group_ids = [0, 1, 2, 3] * 3
    schedule = UpdateSchedule(minibatches=2, update_epochs=1, micro_batches=2, seed=0, keep_groups=True)
    steps = schedule.steps([5 + n for n in range(12)], group_ids, 0)
    assert sorted(row for step in steps for rows in step for row in rows) == list(range(12))
    assert [len(step) for step in steps] == [2, 2]
    for rows in (rows for step in steps for rows in step):
        assert len(rows) == 3
        assert len({group_ids[row] for row in rows}) == 1
