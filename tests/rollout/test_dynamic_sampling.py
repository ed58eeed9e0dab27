"""Dynamic sampling: what is replaced, by what, and what it is said to cost."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.repository import ROOT

from grpo_pl.advantages import GDPO, AdvantageEstimator, GroupRelative, PassAtK
from grpo_pl.rewards.base import RewardFunction, score_samples
from grpo_pl.rewards.feedback import RewardStage
from grpo_pl.rollout.assembly import Response, assemble_rollout
from grpo_pl.rollout.dynamic_sampling import DynamicSampling, first_prompts, replace_group
from grpo_pl.runs.layout import read_metrics
from grpo_pl.types import Prompt, Rollout, Sample, only_here


def prompt(name: str) -> Prompt:
    return Prompt(token_ids=[5, 6], text=name, answer="")


def rollout(answers: dict[str, list[str]]) -> Rollout:
    """One group for each prompt; a response of k letters has k tokens, log-probability -k each."""
    responses = [
        Response(
            token_ids=[ord(letter) for letter in text],
            logprobs=[-float(len(text))] * len(text),
            text=text,
            truncated=text.isupper(),
            token_ends=list(range(1, len(text) + 1)),
        )
        for texts in answers.values()
        for text in texts
    ]
    return assemble_rollout([prompt(name) for name in answers], responses, policy_version=3, temperature=1.0)


class Letters(RewardFunction):
    """A response is worth the number of its first letter; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(weight=0.5)
        self.asked: list[str] = []

    def score(self, samples: Sequence[Sample]) -> list[float]:
        self.asked += [sample.response for sample in samples]
        return [float(ord(sample.response[0])) for sample in samples]


def run(
    first: dict[str, list[str]], later: Sequence[dict[str, list[str]]], rounds: int
) -> tuple[Rollout, list[int]]:
    """The result, and how many prompts each later round was asked for; no response is scored twice."""
    asked: list[int] = []
    reward = Letters()

    def other_prompts(again: int, count: int) -> list[Prompt]:
        assert again == len(asked) + 1
        asked.append(count)
        return [prompt("?")] * count

    start = rollout(first)
    results = [start, *map(rollout, later)]
    sampled = DynamicSampling(rounds)(
        first_prompts(start),
        lambda _: results[len(asked)],
        lambda given: score_samples({"letters": reward}, given.samples),
        other_prompts,
    )
    assert reward.asked == [text for one in results[: len(asked) + 1] for text in one.responses]
    return sampled, asked


def test_the_scores_travel_with_the_rollout() -> None:
    first = {"a": ["x", "y"], "b": ["xx", "xx"], "c": ["z", "z"]}
    sampled, _ = run(first, [{"d": ["w", "w"], "e": ["uuu", "V"]}, {"f": ["p", "q"]}], rounds=3)
    again = score_samples({"letters": Letters()}, sampled.samples)
    for name in ("total", "scored", "outcome"):
        assert torch.equal(getattr(sampled.rewards, name), getattr(again, name))
    assert sampled.rewards.by_name == again.by_name
    assert torch.equal(sampled.rewards.weighted["letters"], again.weighted["letters"])
    assert sampled.rewards.steps == again.steps
    assert sampled.rewards.attempts == 6 + 4 + 2


def test_what_was_scored_while_it_was_sampled_is_not_scored_again() -> None:
    reward = Letters()
    stage = RewardStage({"letters": reward}, [], torch.device("cpu"), only_here)
    plain = rollout({"a": ["x", "y"]})
    sampled = replace(plain, rewards=stage.score(plain))
    assert stage.score(sampled) is sampled.rewards
    assert reward.asked == ["x", "y"]


def test_groups_without_variance_are_replaced_and_the_cost_is_told() -> None:
    first = {"a": ["x", "y"], "b": ["xx", "xx"], "c": ["z", "z"]}
    later = [{"d": ["w", "w"], "e": ["uuu", "V"]}, {"f": ["p", "q"]}]
    sampled, asked = run(first, later, rounds=3)
    assert asked == [2, 1]
    assert [p.text for p in first_prompts(sampled)] == ["a", "e", "f"]
    assert sampled.responses == ["x", "y", "uuu", "V", "p", "q"]
    assert sampled.truncated.tolist() == [False, False, False, True, False, False]
    assert sampled.token_ends[2] == [1, 2, 3]
    assert sampled.loss_mask.sum(-1).tolist() == [1, 1, 3, 1, 1, 1]
    assert sampled.sampling_logprobs.sum(-1).tolist() == [-1, -1, -9, -1, -1, -1]
    assert sampled.group_ids.tolist() == [0, 0, 1, 1, 2, 2]
    # 8 tokens in the first round, 6 in the second, 2 in the third; 8 are kept
    assert sampled.metrics == {
        "rollout/rounds": 3.0,
        "rollout/groups_replaced": pytest.approx(2 / 3),
        "rollout/tokens_thrown_away": 1 - 8 / 16,
    }
    assert sampled.tokens_generated == 16


def test_at_the_bound_what_is_there_stays() -> None:
    sampled, asked = run({"a": ["x", "x"]}, [{"b": ["y", "y"]}], rounds=2)
    assert asked == [1]
    assert [p.text for p in first_prompts(sampled)] == ["a"]
    assert sampled.metrics["rollout/groups_replaced"] == 0.0
    assert sampled.metrics["rollout/tokens_thrown_away"] == 0.5


def test_nothing_is_asked_again_where_all_groups_have_signal() -> None:
    sampled, asked = run({"a": ["x", "y"]}, [], rounds=5)
    assert asked == []
    assert sampled.tokens_generated == 2
    assert sampled.metrics["rollout/rounds"] == 1.0


def test_a_wider_group_widens_the_rollout_with_padding() -> None:
    wide = replace_group(rollout({"a": ["x", "y"], "b": ["z", "z"]}), 1, rollout({"c": ["long", "er"]}), 0)
    assert wide.token_ids.shape == (4, 6)
    assert wide.token_ids[0].tolist() == [5, 6, ord("x"), 0, 0, 0]
    assert not wide.loss_mask[0, 3:].any()


# ------------------------------------------------------------------------------------------ what is a signal


class Named(RewardFunction):
    """The score of a response is written in it, at the place of this reward."""

    def __init__(self, place: int, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.place = place

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        read = [sample.response[self.place] for sample in samples]
        return [None if digit == "-" else float(digit) for digit in read]


def replaced(
    rewards: dict[str, RewardFunction], advantage: AdvantageEstimator, responses: list[str], **options: Any
) -> bool:
    """Whether the group of these responses is replaced by one in which each reward differs."""
    learner = RewardStage(rewards, [], torch.device("cpu"), only_here)
    other = rollout({"b": ["0" * len(rewards)] * (len(responses) - 1) + ["1" * len(rewards)]})
    results = iter([rollout({"a": responses}), other])
    sampled = DynamicSampling(2, **options)(
        [prompt("a")],
        lambda _: next(results),
        learner.score,
        lambda *_: [prompt("b")],
        has_signal=lambda given: advantage.has_signal(learner.feedback(given, given.rewards, observe=False)),
    )
    return first_prompts(sampled)[0].text == "b"


LENGTHS = ["11", "12", "13", "15"]
"""Four right answers of unlike lengths."""


def test_by_correctness_a_group_of_right_answers_is_replaced_though_their_lengths_differ() -> None:
    rewards = {"correct": Named(0), "length": Named(1, weight=0.1)}
    assert not replaced(rewards, GroupRelative(), LENGTHS)
    assert replaced(rewards, GroupRelative(), LENGTHS, by="correct")
    assert not replaced(rewards, GroupRelative(), LENGTHS, by=["correct", "length"])
    assert not replaced(rewards, GroupRelative(), ["11", "01", "11", "11"], by=["correct"])


def test_a_reward_of_weight_0_may_judge_and_those_on_which_it_abstains_do_not_count() -> None:
    rewards = {"correct": Named(0, weight=0.0), "length": Named(1)}
    assert replaced(rewards, GroupRelative(), LENGTHS, by="correct")
    assert replaced(rewards, GroupRelative(), ["11", "-2", "13", "-5"], by="correct")
    assert not replaced(rewards, GroupRelative(), ["11", "-2", "03", "-5"], by="correct")


def test_rewards_of_equal_sums_are_a_signal_for_the_estimator_that_reads_each_alone() -> None:
    rewards = {"a": Named(0), "b": Named(1), "c": Named(2)}
    group = ["100", "010", "001", "100"]  # (1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0)
    assert not replaced(rewards, GDPO(), group)
    assert replaced(rewards, GroupRelative(), group)
    assert replaced(rewards, GDPO(), ["100"] * 4)


def test_a_group_that_the_estimator_makes_nothing_of_is_replaced() -> None:
    assert replaced({"a": Named(0)}, PassAtK(4), ["1", "1", "0", "0"])  # two are best
    assert not replaced({"a": Named(0)}, PassAtK(4), ["1", "0", "0", "0"])


def test_each_round_is_judged_once_on_every_rank() -> None:
    judged: list[Rollout] = []

    def has_signal(given: Rollout) -> torch.Tensor:
        judged.append(given)
        return torch.zeros(len(given.prompts), dtype=torch.bool)

    results = [rollout({"a": ["x", "y"]}) for _ in range(3)]
    waiting = iter(results)
    reward = {"letters": Letters()}
    DynamicSampling(3)(
        [prompt("a")],
        lambda _: next(waiting),
        lambda given: score_samples(reward, given.samples),
        lambda *_: [prompt("a")],
        has_signal=has_signal,
    )
    assert [id(one.token_ids) for one in judged] == [id(one.token_ids) for one in results]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.resample.by", "right"), r"data\.resample\.by=right: model\.rewards has no .* digit$"),
        (
            ("--data.resample.by", "[digit, nope]"),
            r"data\.resample\.by=nope: model\.rewards has no .* digit$",
        ),
        (("--data.resample.by", "[]"), r"by names no reward"),
        (
            ("--model.advantage", "ReinforcePlusPlus"),
            r"ReinforcePlusPlus .* set data\.resample\.by to .* digit",
        ),
        (
            ("--model.advantage", "ReMax", "--data.group_size", "1"),
            r"data\.group_size=1: data\.resample .* every group .* or data\.resample to null$",
        ),
        (
            (
                *("--model.advantage", "Distillation", "--model.rewards.digit", "null"),
                *("--data.resample.by", "digit"),
            ),
            r"no reward of this name: add it, or set data\.resample to null$",
        ),
    ],
)
def test_what_cannot_judge_is_refused_at_the_start(
    fit: Fit, refused: Refused, options: Sequence[str], message: str
) -> None:
    said = refused(fit, "--data.resample.rounds", "2", *options)
    assert re.search(message, said), said


def test_a_critic_s_run_that_judges_by_a_reward_samples_what_a_run_of_this_reward_alone_samples(
    fit: Fit,
) -> None:
    second = ("--model.rewards.letter", "Format", "--model.rewards.letter.pattern", ".*[a-f].*")
    with_a_critic = ("--config", str(ROOT / "configs/ppo.yaml"), "--data.resample.by", "digit")
    short = ("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--data.resample.rounds", "3")
    alone, by_one = (
        read_metrics(fit(*options, *short) / "metrics.csv")[1] for options in ((), (*second, *with_a_critic))
    )
    for key in ("rollout/rounds", "rollout/groups_replaced", "rollout/tokens_thrown_away", "rewards/digit"):
        assert by_one[key] == alone[key]
    assert by_one["rollout/groups_replaced"] > 0  # to the critic no group is without a signal


def test_one_round_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rounds=1 never samples again"):
        DynamicSampling(rounds=1)


def test_a_run_with_dynamic_sampling_has_more_signal(fit: Callable[..., Path]) -> None:
    plain = fit("--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0")
    again = fit(
        "--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0", "--data.resample.rounds", "4"
    )
    before, after = (read_metrics(folder / "metrics.csv")[1] for folder in (plain, again))
    assert before["rollout/groups_without_signal"] > 0, "nothing to replace: the test shows nothing"
    assert after["rollout/groups_without_signal"] < before["rollout/groups_without_signal"]
    assert after["rollout/groups_replaced"] > 0
    assert torch.isfinite(torch.tensor(after["train/loss"]))
