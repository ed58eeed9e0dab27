"""Validation: accuracies, pass@k and majority@k of real rollouts with a real verifier."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from helpers.commands import Fit
from helpers.faults import FailingInWorkers, FailingVerifier

from grpo_pl.functional import majority_at_k, pass_at_k
from grpo_pl.rewards.base import RewardError, Verifier
from grpo_pl.rewards.math_answer import MathAnswer
from grpo_pl.rewards.pool import Workers
from grpo_pl.rewards.rules import ExactMatch, LastNumber
from grpo_pl.runs.layout import read_metrics
from grpo_pl.training.validation import Evaluation, MeanWithInterval, powers_of_two
from grpo_pl.types import Prompt, Rollout

CPU = torch.device("cpu")
NUMBERS = ("", "_low", "_high")


def rollout(
    problems: Sequence[tuple[str, Sequence[str]]], temperature: float, group_ids: Sequence[int] | None = None
) -> Rollout:
    """Gold answers and responses: two tokens of prompt, one for each character; `...` is truncated."""
    rows = [(answer, response) for answer, responses in problems for response in responses]
    lengths = torch.tensor([len(response) for _, response in rows])
    steps = torch.arange(2 + int(lengths.max()))
    mask = (steps >= 2) & (steps < 2 + lengths[:, None])
    ids = (
        [g for g, (_, responses) in enumerate(problems) for _ in responses]
        if group_ids is None
        else group_ids
    )
    return Rollout(
        token_ids=torch.zeros(mask.shape, dtype=torch.int64),
        loss_mask=mask,
        sampling_logprobs=torch.zeros(mask.shape),
        group_ids=torch.tensor(ids),
        prompts=[Prompt(token_ids=[5, 6], text="?", answer=answer) for answer, _ in rows],
        responses=[response for _, response in rows],
        truncated=torch.tensor([response.endswith("...") for _, response in rows]),
        token_ends=[[] for _ in rows],
        policy_version=0,
        temperature=temperature,
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The roots of (1 + z^2/n) x^2 - (2 p + z^2/n) x + p^2 = 0, where the score test just rejects."""
    p, z2 = successes / trials, 1.96**2 / trials
    low, high = (
        ((2 * p + z2) + sign * math.sqrt((2 * p + z2) ** 2 - 4 * (1 + z2) * p * p)) / (2 * (1 + z2))
        for sign in (-1, 1)
    )
    return low, high


# ------------------------------------------------------------------------------------------- MeanWithInterval


def test_the_interval_of_verdicts_is_wilsons() -> None:
    metric = MeanWithInterval()
    for verdict in (1.0, 0.0, 1.0, 1.0):
        metric.update(verdict)
    assert metric.compute() == pytest.approx((0.75, *wilson(3, 4)))
    assert metric.compute() == pytest.approx((0.75, 0.3006, 0.9544), abs=1e-4)


def test_even_if_all_are_right_the_interval_of_few_verdicts_is_wide() -> None:
    metric = MeanWithInterval()
    for _ in range(10):
        metric.update(1.0)
    assert metric.compute() == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)  # 10 / (10 + 1.96^2)


def test_the_interval_of_fractions_is_the_normal_one_with_the_unbiased_variance() -> None:
    # mean 1/2, squared deviations 0 + 1/16 + 1/16 + 0 = 1/8 over 3: variance 1/24, of the mean 1/96
    metric = MeanWithInterval()
    for value in (0.5, 0.25, 0.75, 0.5):
        metric.update(value)
    half = 1.96 * math.sqrt(1 / 96)
    assert metric.compute() == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_the_normal_interval_stays_inside_0_and_1() -> None:
    metric, mirrored = MeanWithInterval(), MeanWithInterval()
    for value in (1.0, 0.5):
        metric.update(value)
        mirrored.update(1 - value)
    # squared deviations 1/16 + 1/16 over 1, of the mean 1/16: 3/4 +- 1.96 / 4
    assert metric.compute() == pytest.approx((0.75, 0.75 - 0.49, 1.0))
    assert mirrored.compute() == pytest.approx((0.25, 0.0, 0.25 + 0.49))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_a_single_number_the_interval_is_everything() -> None:
    assert MeanWithInterval().compute() == (0.0, 0.0, 1.0)


class Mergeable(MeanWithInterval):
    """The same metric, declared as one whose states torchmetrics may reduce without a process group."""

    full_state_update = False


def test_two_ranks_together_know_what_one_would() -> None:
    values = [0.5, 0.1, 1.0, 0.3, 0.0]
    alone, first, second = Mergeable(), Mergeable(), Mergeable()
    for i, value in enumerate(values):
        alone.update(value)
        (first if i < 2 else second).update(value)
    first.merge_state(second)
    assert first.compute() == pytest.approx(alone.compute())


def test_many_numbers_are_summed_exactly_enough() -> None:
    metric = MeanWithInterval()
    metric.total, metric.squares, metric.count = (torch.tensor(2.0**24, dtype=m.dtype) for m in (
        metric.total, metric.squares, metric.count))  # fmt: skip
    metric.update(1.0)  # float32 would lose it
    assert metric.count.item() == 2**24 + 1
    assert metric.total.item() == 2**24 + 1


def test_powers_of_two_go_up_to_the_limit() -> None:
    limits = [powers_of_two(limit) for limit in (1, 2, 3, 7, 8)]
    assert limits == [[1], [1, 2], [1, 2], [1, 2, 4], [1, 2, 4, 8]]


# ------------------------------------------------------------------------------------------------- Evaluation


def test_greedy_responses_give_accuracy_with_wilsons_interval() -> None:
    evaluation = Evaluation({"accuracy": LastNumber()}, CPU)
    evaluation.update(rollout([("5", ["so 5"]), ("7", ["7"])], temperature=0.0))
    evaluation.update(rollout([("9", ["8..."]), ("1,000", ["1000.0"])], temperature=0.0))
    values = evaluation.compute()
    low, high = wilson(3, 4)
    assert values == pytest.approx(
        {
            "val/accuracy": 3 / 4,
            "val/accuracy_low": low,
            "val/accuracy_high": high,
            "val/accuracy_abstained": 0.0,
            "val/truncated": 1 / 4,
            "val/response_tokens": (4 + 1 + 4 + 6) / 4,
        }
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_problem_on_which_the_verifier_abstains_counts_as_wrong(temperature: float) -> None:
    assert LastNumber().score(rollout([("no number", ["5"])], 0.0).samples) == [None]
    evaluation = Evaluation({"accuracy": LastNumber()}, CPU)
    evaluation.update(rollout([("no number", ["5"]), ("5", ["5"])], temperature))
    values = evaluation.compute()
    assert values["val/accuracy" if temperature == 0 else "val/accuracy_pass@1"] == 0.5
    assert values[f"{'val' if temperature == 0 else 'val_sampled'}/accuracy_abstained"] == 0.5


def test_sampled_responses_give_pass_and_majority_at_powers_of_two() -> None:
    # first problem: answers 5 5 7 and none: pass@1 2/4, pass@2 1 - 1/6, pass@4 1;
    #   majority@2: {5,5} 1, {5,7} twice 1/2, {5,none} twice 1, {7,none} 0: 4/6; majority@4: 1
    # second problem: one of four is right: pass@1 1/4, pass@2 1 - C(3,2) / C(4,2) = 1/2, pass@4 1;
    #   majority@2: {2,3} three times 1/2, {3,3} three times 0: 1/4; majority@4: 0
    evaluation = Evaluation({"accuracy": LastNumber()}, CPU)
    problems = [("5", ["5", "it is 5", "7", "none"]), ("2", ["3", "2", "3", "3..."])]
    evaluation.update(rollout(problems, temperature=1.0))
    values = evaluation.compute()
    expected = {
        "val/accuracy_pass@1": (2 / 4 + 1 / 4) / 2,
        "val/accuracy_pass@2": (5 / 6 + 1 / 2) / 2,
        "val/accuracy_pass@4": 1.0,
        "val/accuracy_majority@2": (4 / 6 + 1 / 4) / 2,
        "val/accuracy_majority@4": (1 + 0) / 2,
        "val_sampled/accuracy_abstained": 0.0,
        "val_sampled/truncated": 1 / 8,
        "val_sampled/response_tokens": (1 + 7 + 1 + 4 + 1 + 1 + 1 + 4) / 8,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    with_interval = [name + end for name in expected if name.startswith("val/") for end in NUMBERS]
    assert values.keys() == {*with_interval, *(name for name in expected if name.startswith("val_sampled/"))}


def test_votes_are_read_as_they_are_scored_where_the_prompt_has_opened_a_thought() -> None:
    sampled = rollout([("72", ["So 24", "So 24", "So 24", "done</think>72"])], temperature=1.0)
    for prompt in sampled.prompts:
        prompt.opened = "<think>\n"
    evaluation = Evaluation({"accuracy": MathAnswer()}, CPU)
    evaluation.update(sampled)
    assert evaluation.compute()["val/accuracy_majority@4"] == 1


def test_pass_at_1_comes_with_the_interval_over_problems_and_not_over_responses() -> None:
    # pass@1 of the three problems: 1, 1/2, 0: mean 1/2, squared deviations 1/2 over 2, of the mean 1/12
    evaluation = Evaluation({"accuracy": LastNumber()}, CPU)
    evaluation.update(rollout([("1", ["1", "1"]), ("2", ["2", "0"]), ("3", ["0", "0"])], temperature=0.7))
    values, half = evaluation.compute(), 1.96 * math.sqrt(1 / 12)
    got = [values["val/accuracy_pass@1" + end] for end in NUMBERS]
    assert got == pytest.approx([0.5, max(0.5 - half, 0.0), min(0.5 + half, 1.0)])


def test_responses_belong_to_the_problem_of_their_group_id_wherever_they_stand() -> None:
    responses = ["4", "6", "4", "9"]
    interleaved = rollout([("4", [response]) for response in responses], 1.0, group_ids=[3, 1, 3, 1])
    evaluation = Evaluation({"accuracy": LastNumber()}, CPU)
    evaluation.update(interleaved)
    expected = (pass_at_k([True, True], 2) + pass_at_k([False, False], 2)) / 2
    assert evaluation.compute()["val/accuracy_pass@2"] == expected == 0.5
    expected = (majority_at_k(["4", "4"], [True] * 2, 2) + majority_at_k(["6", "9"], [False] * 2, 2)) / 2
    assert evaluation.compute()["val/accuracy_majority@2"] == expected


def test_each_verifier_has_its_own_verdict() -> None:
    evaluation = Evaluation({"number": LastNumber(), "exact": ExactMatch()}, CPU)
    evaluation.update(rollout([("5", ["it is 5"]), ("6", ["6"])], temperature=0.0))
    values = evaluation.compute()
    assert (values["val/number"], values["val/exact"]) == (1.0, 0.5)


@pytest.mark.parametrize("name", ["accuracy", "last_number", "exact_match_v2"])
def test_every_accuracy_has_its_interval_whatever_the_verifier_is_called(name: str) -> None:
    evaluation = Evaluation({name: LastNumber()}, CPU)
    evaluation.update(rollout([("5", ["5"]), ("6", ["0"])], temperature=0.0))
    evaluation.update(rollout([("5", ["5", "1"]), ("6", ["0", "6"])], temperature=1.0))
    values = evaluation.compute()
    for metric in (f"val/{name}", f"val/{name}_pass@1", f"val/{name}_pass@2", f"val/{name}_majority@2"):
        assert {metric + end for end in NUMBERS} <= values.keys()


# --------------------------------------------------------------------------------------------------- on_error


BROKEN = [("5", ["5", "broken"]), ("6", ["6", "0"])]
QUICK = Workers(timeout_s=0.5, on_timeout="abstain")


@pytest.mark.parametrize("build", [FailingVerifier, FailingInWorkers])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_verifier_that_raises_ends_the_validation_and_says_on_what(
    build: type[Verifier], temperature: float
) -> None:
    evaluation = Evaluation({"accuracy": build()}, CPU)
    with pytest.raises(RewardError, match=r"^Verifier 'accuracy' failed.*no (such )?luck.*response 'broken'"):
        evaluation.update(rollout(BROKEN, temperature))


@pytest.mark.parametrize("build", [FailingVerifier, FailingInWorkers])
def test_a_verifier_that_abstains_on_errors_calls_the_response_wrong_and_counts_it(
    build: type[Verifier], caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = Evaluation({"accuracy": build(on_error="abstain")}, CPU)
    evaluation.update(rollout(BROKEN, 0.0))
    evaluation.update(rollout(BROKEN, 1.0))
    values = evaluation.compute()
    assert values["val/accuracy"] == 2 / 4
    assert values["val/accuracy_abstained"] == values["val_sampled/accuracy_abstained"] == 1 / 4
    assert (values["val/accuracy_pass@1"], values["val/accuracy_pass@2"]) == (1 / 2, 1.0)
    assert not [name for name in values if "abstained_" in name]
    assert "broken" in caplog.text


def test_a_verdict_whose_worker_times_out_is_wrong_and_counted() -> None:
    evaluation = Evaluation({"accuracy": FailingInWorkers(on_error="abstain", workers=QUICK)}, CPU)
    evaluation.update(rollout([("5", ["5"]), ("5", ["hang"])], 0.0))
    values = evaluation.compute()
    assert (values["val/accuracy"], values["val/accuracy_abstained"]) == (0.5, 0.5)


def test_an_answer_that_cannot_be_extracted_is_none_or_ends_the_validation() -> None:
    problem = [("5", ["5", "broken", "broken"])]  # two of three would outvote it
    with pytest.raises(RewardError, match=r"^Verifier 'accuracy' failed to extract .* on_error: abstain"):
        Evaluation({"accuracy": FailingVerifier("extract")}, CPU).update(rollout(problem, 1.0))
    evaluation = Evaluation({"accuracy": FailingVerifier("extract", on_error="abstain")}, CPU)
    evaluation.update(rollout([*problem, ("5", ["5", "broken", "5"])], 1.0))
    assert evaluation.compute()["val/accuracy_majority@2"] == (2 / 3 + 1) / 2  # none never outvotes an answer


def test_a_failing_verifier_does_not_end_a_run_that_says_abstain(fit: Fit) -> None:
    key = "--model.verifiers.accuracy"
    abstain = (key, "helpers.faults.FailingVerifier", f"{key}.word", "", f"{key}.on_error", "abstain")
    row = read_metrics(fit("--trainer.max_epochs", "1", *abstain) / "metrics.csv")[-1]
    assert (row["val/accuracy"], row["val/accuracy_abstained"]) == (0.0, 1.0)


# -------------------------------------------------------------------------------------------------- verdicts


def test_verdicts_are_kept_for_each_problem_and_sample_in_the_order_of_the_problems() -> None:
    evaluation = Evaluation({"number": LastNumber(), "exact": ExactMatch()}, CPU)
    for rows, responses in (((2, 0), ["it is 5", "6"]), ((1,), ["5"])):
        greedy = rollout([("5", [response]) for response in responses], temperature=0.0)
        greedy.prompts = [replace(p, row=row) for p, row in zip(greedy.prompts, rows, strict=True)]
        evaluation.update(greedy)
    sampled = rollout([("5", ["5", "6", "it is 5"])], temperature=1.0)
    sampled.prompts = [replace(p, row=1) for p in sampled.prompts]
    evaluation.update(sampled)
    found = {one.name: one for one in evaluation.verdicts()}
    assert {name: one.solved.tolist() for name, one in found.items()} == {
        "val/number": [[False], [True], [True]],
        "val/exact": [[False], [True], [False]],
        "val_sampled/number": [[True, False, True]],
        "val_sampled/exact": [[True, False, False]],
    }
    assert [p.partition(":")[0] for p in found["val/exact"].problems] == ["0", "1", "2"]
    assert found["val_sampled/exact"].problems == found["val/exact"].problems[1:2]
