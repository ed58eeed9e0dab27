"""Transforms of rewards by hand, as identities, and inside a run."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from helpers.commands import Fit
from helpers.exact import few
from helpers.repository import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.rewards.feedback import RewardStage
from grpo_pl.rewards.rules import Format
from grpo_pl.rewards.transforms import Clip, RewardTransform, RunningNormalization
from grpo_pl.runs.layout import read_metrics
from grpo_pl.types import Prompt, Sample, only_here


def rewards(*values: float) -> tuple[Tensor, Tensor]:
    """Rows of two tokens of which the last earns the value."""
    paid = torch.zeros(len(values), 2)
    paid[:, 1] = torch.tensor(values)
    return paid, torch.tensor([False, True]).expand(len(values), 2)


def through(transforms: Sequence[RewardTransform], *values: float) -> list[float]:
    paid, earned = rewards(*values)
    for transform in transforms:
        transform.observe(paid, earned, only_here)
        paid = transform(paid, earned)
    assert not paid[:, 0].any(), "a token that earns nothing got a reward"
    return paid[:, 1].tolist()


def test_clip_by_hand_also_where_a_reward_is_0() -> None:
    assert through([Clip(0.5, 2.0)], -1.0, 0.0, 1.0, 3.0) == [0.5, 0.5, 1.0, 2.0]


def test_running_normalization_by_hand() -> None:
    """-2, 2 have the deviation 2; with 0, 0 it is sqrt(2); a reward of 0 counts like any other."""
    transform = RunningNormalization()
    assert through([transform], -2.0, 2.0) == [-1.0, 1.0]
    assert through([transform], 0.0, 0.0) == [0.0, 0.0]
    assert float(transform.squares / transform.count) == pytest.approx(2.0)
    assert through([transform], 3.0, -3.0) == pytest.approx([3 / (26 / 6) ** 0.5, -3 / (26 / 6) ** 0.5])


def test_centering_moves_rewards_of_0_and_leaves_tokens_without_reward() -> None:
    assert through([RunningNormalization(center=True)], 0.0, 4.0) == [-1.0, 1.0]


def test_the_order_of_clip_and_normalization_is_that_of_the_list() -> None:
    """Clipped first: 0, 2 with deviation 1. Normalised first: 0, 10 with deviation 5."""
    assert through([Clip(-2.0, 2.0), RunningNormalization()], 0.0, 10.0) == [0.0, 2.0]
    assert through([RunningNormalization(), Clip(-1.5, 1.5)], 0.0, 10.0) == [0.0, 1.5]


@pytest.mark.parametrize("value", [0.1, -1e6, 0.0])
def test_rewards_without_spread_are_not_divided(value: float) -> None:
    transform = RunningNormalization()
    for _ in range(3):
        assert through([transform], *[value] * 7) == pytest.approx([value] * 7)


def test_an_iteration_without_rewards_changes_nothing() -> None:
    transform = RunningNormalization()
    assert through([transform]) == []
    through([transform], 1.0, 3.0)
    before = {name: value.clone() for name, value in transform.state_dict().items()}
    through([transform])
    assert all(torch.equal(value, before[name]) for name, value in transform.state_dict().items())


VALUES = st.lists(st.floats(-1e3, 1e3, width=32), max_size=20)


@few
@given(st.lists(VALUES, min_size=1, max_size=5), st.floats(-1e4, 1e4))
def test_many_iterations_have_the_statistics_of_one(parts: list[list[float]], offset: float) -> None:
    transform = RunningNormalization()
    for part in parts:
        through([transform], *[value + offset for value in part])
    every = torch.tensor([value + offset for part in parts for value in part]).double()
    assert int(transform.count) == len(every)
    if len(every):
        assert float(transform.mean) == pytest.approx(float(every.mean()), rel=1e-9, abs=1e-6)
        variance = float(every.var(correction=0))
        assert float(transform.squares / transform.count) == pytest.approx(variance, rel=1e-6, abs=1e-5)


@few
@given(VALUES, VALUES)
def test_two_ranks_have_the_statistics_of_one(first: list[float], second: list[float]) -> None:
    barrier, slots = Barrier(2, timeout=30), [torch.zeros(0), torch.zeros(0)]

    def sum_over_ranks(rank: int) -> Callable[[Tensor], Tensor]:
        def total(values: Tensor) -> Tensor:
            slots[rank] = values
            barrier.wait()
            summed = slots[0] + slots[1]
            barrier.wait()
            return summed

        return total

    ranks, one = [RunningNormalization(), RunningNormalization()], RunningNormalization()
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(ranks[rank].observe, *rewards(*values), sum_over_ranks(rank))
            for rank, values in enumerate((first, second))
        ]
        for job in jobs:
            job.result()
    one.observe(*rewards(*first, *second), only_here)
    for name, value in one.state_dict().items():
        for rank in ranks:
            assert float(rank.state_dict()[name]) == pytest.approx(float(value), rel=1e-9, abs=1e-6)


def test_greedy_rewards_are_transformed_but_not_counted() -> None:
    transform = RunningNormalization()
    stage = RewardStage({"digit": Format(".*[0-9]")}, [transform], torch.device("cpu"), only_here)
    transform.observe(*rewards(0.0, 0.5), only_here)
    prompt = Prompt(token_ids=[1], text="?", answer="")
    greedy = [
        Sample(prompt=prompt, response=text, response_tokens=len(text), truncated=False)
        for text in ("is 5", "no", "7")
    ]
    assert stage.greedy_rewards(greedy).tolist() == [4.0, 0.0, 4.0]
    assert int(transform.count) == 2


# ---------------------------------------------------------------------------------------------- inside a run


def listed(*transforms: str) -> tuple[str, str]:
    return "--model.reward_transforms", json.dumps([{"class_path": name} for name in transforms])


BOTH = listed("RunningNormalization", "Clip")
GAE = ("--config", str(ROOT / "configs" / "ppo.yaml"))
"""A critic sees the scale of rewards, which a group's standard deviation would take out again."""


def state(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def losses(folder: Path) -> list[float]:
    return [row["train/value_loss"] for row in read_metrics(folder / "metrics.csv")[1:]]


def test_a_resumed_run_has_the_statistics_of_one_never_stopped(fit: Fit) -> None:
    whole = fit("--trainer.max_epochs", "4", "--checkpoint.every_n_epochs", "2", *BOTH, *GAE)
    half = fit("--trainer.max_epochs", "2", *BOTH, *GAE)
    assert float(state(half)["reward_transforms.0.count"]) == 2 * 16
    fit("--trainer.max_epochs", "4", "--ckpt_path", "last", *BOTH, *GAE, root=half)
    ours, theirs = state(half), state(whole)
    assert float(ours["reward_transforms.0.count"]) == 4 * 16
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(half) == losses(whole)


def test_a_run_normalizes_what_the_critic_learns(fit: Fit) -> None:
    short = ("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", *GAE)
    plain, normalized = fit(*short), fit(*short, *listed("RunningNormalization"))
    std = read_metrics(plain / "metrics.csv")[1]["rollout/reward_std"]
    assert 0 < std < 1
    assert losses(plain) != losses(normalized)
    counted = state(normalized)
    spread = counted["reward_transforms.0.squares"] / counted["reward_transforms.0.count"]
    assert float(spread.sqrt()) == pytest.approx(std, abs=1e-6)
