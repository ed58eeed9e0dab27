"""Rewards that are models, alone and inside a run."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.exact import few
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from grpo_pl.functional import batches_within
from grpo_pl.models.builder import Build
from grpo_pl.rewards.models import OutcomeRewardModel, ProcessRewardModel
from grpo_pl.runs.layout import read_metrics
from grpo_pl.types import Prompt, Sample, StepScore


def whole(build: Build) -> nn.Module:
    return build()


RESPONSES = ["5", "2 + 3 is\n5", "", "I think that\n\nit is 6.\n", "0" * 60]


def samples() -> list[Sample]:
    prompt = Prompt(token_ids=[1], text="What is 2 + 3?", answer="5")
    return [Sample(prompt=prompt, response=r, response_tokens=1, truncated=False) for r in RESPONSES]


def rendered(response: str) -> str:
    return f"<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_outcomes_are_the_logits_of_transformers_however_they_are_batched(
    outcome_model: Path, batch_tokens: int
) -> None:
    reward = OutcomeRewardModel(str(outcome_model), batch_tokens=batch_tokens)
    reward.build(whole)
    model = AutoModelForSequenceClassification.from_pretrained(outcome_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(outcome_model)
    expected = [model(**tokenizer(rendered(r), return_tensors="pt")).logits.item() for r in RESPONSES]
    assert len({round(score, 3) for score in expected}) == len(RESPONSES)
    assert reward.score(samples()) == pytest.approx(expected, abs=1e-4)


def test_equal_responses_are_read_once_and_scored_alike(outcome_model: Path) -> None:
    reward, read = OutcomeRewardModel(str(outcome_model)), []
    reward.build(whole)
    assert reward.model is not None
    reward.model.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    scores = reward.score(samples() + samples()[::-1])
    assert sum(read) == len(RESPONSES)
    assert scores[: len(RESPONSES)] == scores[: len(RESPONSES) - 1 : -1]


def test_a_reward_model_scores_the_whole_conversation(outcome_model: Path) -> None:
    reward = OutcomeRewardModel(str(outcome_model))
    reward.build(whole)
    plain, conversation = samples()[0], samples()[0]
    turn = {"role": "user", "content": plain.prompt.text}
    plain.prompt = replace(plain.prompt, messages=[turn])
    conversation.prompt = replace(plain.prompt, messages=[{"role": "system", "content": "Be kind."}, turn])
    same, single, other = reward.score([samples()[0], plain, conversation])
    assert single == pytest.approx(same)
    assert abs(other - same) > 1e-4


def test_the_sigmoid_link_bounds_the_score(outcome_model: Path) -> None:
    plain, bounded = (OutcomeRewardModel(str(outcome_model), link=link) for link in ("none", "sigmoid"))
    plain.build(whole)
    bounded.build(whole)
    expected = [1 / (1 + math.exp(-score)) for score in plain.score(samples())]
    assert bounded.score(samples()) == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_a_step_is_scored_at_its_last_token(process_model: Path, batch_tokens: int) -> None:
    reward = ProcessRewardModel(str(process_model), batch_tokens=batch_tokens)
    reward.build(whole)
    model = AutoModelForTokenClassification.from_pretrained(process_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(process_model)
    ends = [[1], [9, 10], [], [14, 23], [60]]
    for response, of_sample, steps in zip(RESPONSES, ends, reward.score_steps(samples()), strict=True):
        encoded = tokenizer(rendered(response), return_tensors="pt")
        logits = model(**encoded).logits[0, :, 0]
        begin = rendered(response).rindex("assistant\n") + len("assistant\n")
        tokens = [encoded.char_to_token(begin + end - 1) for end in of_sample]
        assert [step.end for step in steps] == of_sample
        expected = [float(logits[token].sigmoid()) for token in tokens]
        assert [step.score for step in steps] == pytest.approx(expected, abs=1e-5)


def test_a_process_reward_model_is_worth_the_sum_of_its_steps(process_model: Path) -> None:
    reward = ProcessRewardModel(str(process_model), steps="is")
    reward.build(whole)
    steps = reward.score_steps(samples())
    assert [len(of_sample) for of_sample in steps] == [1, 2, 0, 2, 1]
    assert all(isinstance(step, StepScore) for of_sample in steps for step in of_sample)
    assert reward.score(samples()) == pytest.approx([sum(s.score for s in of) for of in steps])


@few
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_within(lengths, budget)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert lengths[rows[0]] == max(lengths[row] for row in rows)
        assert len(rows) == 1 or lengths[rows[0]] * len(rows) <= budget
    for rows, following in pairwise(batches):
        assert min(lengths[row] for row in rows) >= max(lengths[row] for row in following)
        assert lengths[rows[0]] * (len(rows) + 1) > budget, "the next row had room"


def test_more_tokens_than_the_model_reads_are_refused(outcome_model: Path) -> None:
    reward = OutcomeRewardModel(str(outcome_model))
    reward.build(whole)
    with pytest.raises(ValueError, match=r"are 2.. tokens to the reward model, which reads 256: lower"):
        reward.score([replace(samples()[0], response="7" * 250)])


def test_a_budget_of_no_tokens_is_refused(outcome_model: Path) -> None:
    with pytest.raises(ValueError, match=r"^batch_tokens=0: expected 1 or more"):
        OutcomeRewardModel(str(outcome_model), batch_tokens=0)


# ---------------------------------------------------------------------------------------------- inside a run


def added(cls: str, **arguments: object) -> tuple[str, str]:
    """A reward beside the rule of tiny.yaml."""
    digit = {"class_path": "Format", "init_args": {"pattern": ".*[0-9].*"}}
    return "--model.rewards", json.dumps({"digit": digit, "rm": {"class_path": cls, "init_args": arguments}})


SHORT = ("--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0", "--samples.every", "0")


@pytest.mark.parametrize("cls", ["OutcomeRewardModel", "ProcessRewardModel"])
def test_a_reward_model_beside_a_rule_is_logged_on_its_own_and_in_no_checkpoint(
    cls: str, fit: Fit, outcome_model: Path, process_model: Path
) -> None:
    path = outcome_model if cls.startswith("Outcome") else process_model
    folder = fit(*added(cls, pretrained=str(path), weight=0.5), *SHORT)
    for row in read_metrics(folder / "metrics.csv")[1:]:
        total = row["rewards/digit"] + 0.5 * row["rewards/rm"]
        assert row["rollout/reward"] == pytest.approx(total, abs=1e-5)
        assert row["rewards/rm"] != 0
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("policy.") for name in state)
    reward = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["rewards"]
    assert set(reward) == {"digit", "rm"}


@pytest.mark.parametrize(
    ("model", "cls", "sentence"),
    [
        ("", "OutcomeRewardModel", "pretrained='': expected the name of an outcome reward model"),
        ("tiny_model", "OutcomeRewardModel", "holds no outcome reward model"),
        ("tiny_model", "ProcessRewardModel", "holds no process reward model"),
        ("process_model", "OutcomeRewardModel", "holds no outcome reward model"),
    ],
)
def test_what_is_no_such_reward_model_is_refused_in_one_sentence(
    model: str, cls: str, sentence: str, fit: Fit, refused: Refused, request: pytest.FixtureRequest
) -> None:
    pretrained = str(request.getfixturevalue(model)) if model else ""
    assert sentence in refused(fit, *added(cls, pretrained=pretrained))


def test_a_reward_model_must_be_named(fit: Fit, refused: Refused) -> None:
    assert "pretrained" in refused(fit, *added("OutcomeRewardModel"))
