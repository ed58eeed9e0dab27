# ruff: noqa: ARG001, ARG002, ARG005 - what a function takes is what is tested
"""A user's reward function: its signature is checked when it is named, its results when it is called."""

import asyncio
import functools
import importlib.util
import json
import os
import re
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import worker_calls
from helpers.commands import Fit, OverARun, Refused

from grpo_pl.rewards.base import RewardError, score_samples
from grpo_pl.rewards.rules import Function, WorkerFunction
from grpo_pl.training.checks.prompts import check_answers
from grpo_pl.types import Prompt, Sample


def sample(response: str, answer: str = "5", ids: tuple[int, ...] = (), **prompt: Any) -> Sample:
    return Sample(
        prompt=Prompt(**{"token_ids": [1], "text": "What is 2 + 3?", "answer": answer} | prompt),
        response=response,
        response_tokens=len(ids),
        truncated=False,
        tokens=(torch.tensor([1, *ids, 0]), torch.tensor([False, *[True] * len(ids), False])),
    )


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 3?"}]


# ------------------------------------------------------------ functions of other people


def own(*, prompt, response, answer, metadata):
    return float(answer in response)


def own_of_anything(**kwargs):
    return float(kwargs["answer"] in kwargs["response"])


def trl(prompts, completions, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def trl_of_columns(completions, solution, level, **kwargs):
    return [
        None if i is None else float(s in c) + i for c, s, i in zip(completions, solution, level, strict=True)
    ]


def trl_state(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step) for _ in completions]


def verl(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(ground_truth in solution_str), "acc": ground_truth in solution_str}


def verl_of_two(solution_str, ground_truth, method="strict", score=1.0):
    return score if ground_truth in solution_str else 0


def verl_batch(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(g in s) for s, g in zip(solution_strs, ground_truths, strict=True)]


def three(*, prompt, response, answer):
    return 1.0


def five(*, prompt, response, answer, metadata, temperature):
    return 1.0


def by_position(prompt, response, answer, metadata, /):
    return 1.0


def positions(*args):
    return 1.0


def handed_on(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def turned_into_ours(function):
    @functools.wraps(function)
    def wrapper(*, prompt, response, answer, metadata):
        return function(prompts=[prompt], completions=[response], completion_ids=[[1]])[0]

    return wrapper


class Instance:
    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, *, prompt, response, answer, metadata):
        return self.value

    def method(self, completions, **kwargs):
        return [self.value for _ in completions]


class OfTRL:
    def __call__(self, completions, **kwargs):
        return [1.0 for _ in completions]


async def soon(*, prompt, response, answer, metadata):
    await asyncio.sleep(0)
    return float(answer in response)


async def soon_trl(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


OURS = r"expected \(\*, prompt, response, answer, metadata\)"
THEIRS = r"expected \(prompts, completions, completion_ids, \*\*columns\)"
VERLS = r"expected \(data_source, solution_str, ground_truth, extra_info\)"
REFUSED = {
    "TRL's": (
        trl,
        "own",
        rf"takes \(prompts, completions, completion_ids, \*\*kwargs\), {OURS}: set signature to trl$",
    ),
    "TRL's with defaults": (lambda completions=None, **_: [1.0], "own", f"{OURS}: set signature to trl$"),
    "TRL's method": (Instance(1.0).method, "own", f"{OURS}: set signature to trl$"),
    "TRL's instance": (OfTRL(), "own", f"=OfTRL takes .*{OURS}: set signature to trl$"),
    "TRL's, decorated": (handed_on(trl), "own", f"{OURS}: set signature to trl$"),
    "TRL's, partial": (functools.partial(trl, completion_ids=[]), "own", f"{OURS}: set signature to trl$"),
    "TRL's, cached": (functools.cache(trl), "own", f"{OURS}: set signature to trl$"),
    "verl's": (verl, "own", f"{OURS}: set signature to verl$"),
    "verl's for many": (verl_batch, "own", f"{OURS}: set signature to verl$"),
    "too few": (three, "own", rf"takes \(\*, prompt, response, answer\), {OURS}: write it so, or"),
    "too many": (five, "own", f"{OURS}: write it so, or set signature to trl or verl if"),
    "by position": (by_position, "own", f"metadata, /.*, {OURS}"),
    "positions": (positions, "own", rf"takes \(\*args\), {OURS}"),
    "nothing": (lambda: 1.0, "own", rf"takes \(\), {OURS}"),
    "builtin": (max, "own", "=max does not show its parameters: call it in a function of your own"),
    "C": (len, "own", rf"=len takes \(obj, /\), {OURS}"),
    "ours as TRL's": (own, "trl", f"{THEIRS}: set signature to own$"),
    "verl's as TRL's": (verl, "trl", f"{THEIRS}: set signature to verl$"),
    "verl's as TRL's, of anything": (
        lambda solution_str, **_: 1.0,
        "trl",
        f"{THEIRS}: set signature to verl$",
    ),
    "the trainer's state": (
        trl_state,
        "trl",
        f"{THEIRS}: give trainer_state a default, since only TRL's trainer",
    ),
    "ours as verl's": (own, "verl", f"{VERLS}: set signature to own$"),
    "TRL's as verl's": (trl, "verl", f"{VERLS}: set signature to trl$"),
    "another verl's": (lambda model_output, ground_truth: 1.0, "verl", f"{VERLS}: write it so"),
    "half of verl's for many": (lambda solution_strs, ground_truth: [1.0], "verl", VERLS),
}


@pytest.mark.parametrize(("function", "signature", "sentence"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("kind", [Function, WorkerFunction])
def test_a_function_that_cannot_be_called_as_its_signature_says_is_refused(
    kind, function, signature, sentence
):
    with pytest.raises(ValueError, match=f"^function.*{sentence}"):
        kind(function, signature=signature)


ACCEPTED = {
    "ours": (own, "own", [1.0, 0.0]),
    "of anything": (own_of_anything, "own", [1.0, 0.0]),
    "a lambda": (lambda response, **_: len(response), "own", [1.0, 2.0]),
    "an instance": (Instance(0.5), "own", [0.5, 0.5]),
    "a partial": (functools.partial(five, temperature=1.0), "own", [1.0, 1.0]),
    "decorated": (handed_on(own), "own", [1.0, 0.0]),
    "a decorator that adapts": (turned_into_ours(trl), "own", [1.0, 1.0]),
    "with messages": (
        lambda *, prompt, response, answer, metadata, messages: len(messages),
        "own",
        [2.0, 2.0],
    ),
    "a coroutine": (soon, "own", [1.0, 0.0]),
    "TRL's": (trl, "trl", [1.0, 3.0]),
    "TRL's, of columns": (trl_of_columns, "trl", [8.0, None]),
    "TRL's, of two": (lambda prompts, completions: [float("=" in c) for c in completions], "trl", [0.0, 0.0]),
    "TRL's method": (Instance(0.5).method, "trl", [0.5, 0.5]),
    "TRL's coroutine": (soon_trl, "trl", [1.0, 2.0]),
    "verl's": (verl, "verl", [1.0, 0.0]),
    "verl's, of two": (verl_of_two, "verl", [1.0, 0.0]),
    "verl's for many": (verl_batch, "verl", [1.0, 0.0]),
    "verl's of anything": (lambda **k: k["solution_str"] == k["ground_truth"], "verl", [1.0, 0.0]),
}


@pytest.mark.parametrize(("function", "signature", "scores"), ACCEPTED.values(), ids=ACCEPTED)
def test_a_function_of_each_signature_scores(function, signature, scores):
    plain = {"templated": False, "messages": CHAT}
    samples = [
        sample("5", ids=(7,), metadata={"level": 7}, **plain),
        sample("no", ids=(1, 2, 3), metadata={"level": None}, **plain),
    ]
    assert Function(function, signature=signature).score(samples) == scores
    assert Function(function, signature=signature).score([]) == []


# ------------------------------------------------------------ what they are given


def given(signature: str, *samples: Sample) -> dict[str, Any]:
    """The arguments of one call."""
    seen: list[dict[str, Any]] = []

    def look(**kwargs: Any) -> Any:
        seen.append(kwargs)
        return [0.0] * len(samples) if signature == "trl" else 0.0

    Function(look, signature=signature).score(samples)
    return seen[0]


def test_our_own_function_gets_the_texts_of_one_sample():
    assert given("own", sample("r", "a", metadata={"level": 3}, messages=CHAT)) == {
        "prompt": "What is 2 + 3?",
        "response": "r",
        "answer": "a",
        "metadata": {"level": 3},
    }


def test_a_function_of_trl_gets_every_column_as_a_list():
    rows = [
        sample("x", "1", (4, 5), metadata={"level": 3, "prompt": "no", "prompts": "no"}, gold={"gold": 1}),
        sample("y", "2", (6,), metadata={"source": "web"}, gold={"gold": 2}),
    ]
    assert given("trl", *rows) == {
        "prompts": ["What is 2 + 3?"] * 2,
        "completions": ["x", "y"],
        "completion_ids": [[4, 5], [6]],
        "gold": [1, 2],
        "answer": [1, 2],
        "solution": [1, 2],
        "level": [3, None],
        "source": [None, "web"],
    }


def test_a_column_of_the_data_goes_before_our_names_of_the_gold_answer():
    row = sample("x", "1", metadata={"solution": "by hand"}, gold={"final": "1"})
    seen = given("trl", row)
    assert (seen["solution"], seen["answer"], seen["final"]) == (["by hand"], ["1"], ["1"])


def test_a_chat_is_conversational_for_trl_and_plain_text_is_standard():
    chat = given("trl", sample("5", messages=CHAT))
    assert chat["prompts"] == [CHAT]
    assert chat["completions"] == [[{"role": "assistant", "content": "5"}]]
    plain = given("trl", sample("5", messages=CHAT, templated=False))
    assert (plain["prompts"], plain["completions"]) == (["What is 2 + 3?"], ["5"])


def test_a_function_of_verl_gets_its_columns_and_what_its_agent_loop_adds():
    row = {
        "data_source": "gsm8k",
        "reward_model": {"style": "rule", "ground_truth": 5},
        "extra_info": {"i": 1},
    }
    added = {"num_turns": 2, "rollout_reward_scores": {}}
    assert given("verl", sample("r", metadata=row)) == {
        "data_source": "gsm8k",
        "solution_str": "r",
        "ground_truth": 5,
        "extra_info": {"i": 1} | added,
    }
    assert row["extra_info"] == {"i": 1}, "the row is shared by all visits"
    bare = given("verl", sample("r", metadata={"level": 3}))
    assert (bare["data_source"], bare["ground_truth"]) == ("", "5")
    assert bare["extra_info"] == {"level": 3, "answer": "5"} | added
    assert given("verl", sample("r", gold={"ground_truth": 44}))["ground_truth"] == 44
    assert given("verl", sample("r", metadata={"extra_info": "x"}))["extra_info"] == "x"
    assert given("verl", sample("r", metadata={"extra_info": None}))["extra_info"] == added


def test_a_column_that_no_row_has_is_refused_at_the_start():
    reward = Function(trl_of_columns, signature="trl")
    prompts = [sample("", metadata={"level": 1}).prompt, sample("", metadata={}).prompt]
    check_answers("model.rewards", {"mine": reward}, "data.train", prompts)
    with pytest.raises(
        ValueError, match=r"takes level, and the data has no such column \(it has 'answer', 'solution'\)"
    ):
        check_answers("model.rewards", {"mine": reward}, "data.train", prompts[1:])
    without_gold = [sample("", answer="", metadata={"level": 1}).prompt]
    with pytest.raises(ValueError, match=r"takes solution, .* no such column \(it has 'level'\)"):
        check_answers("model.rewards", {"mine": reward}, "data.train", without_gold)


# ------------------------------------------------------------ what they may return


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (True, 1.0), (np.bool_(True), 1.0), (np.bool_(False), 0.0), (3, 3.0), (np.float32(0.5), 0.5),
        (np.int64(2), 2.0), (np.array(0.5), 0.5), (torch.tensor(0.5), 0.5), (torch.tensor(True), 1.0),
        (Decimal("0.5"), 0.5),         (Fraction(1, 2), 0.5), (None, None),
    ],
    ids=repr,
)  # fmt: skip
def test_every_real_number_is_a_score(value, score):
    assert Function(lambda **_: value).score([sample("")]) == [score]
    assert Function(lambda **_: [value], signature="trl").score([sample("")]) == [score]
    assert Function(lambda **_: value, signature="verl").score([sample("")]) == [score]
    assert Function(lambda **_: {"score": value}, signature="verl").score([sample("")]) == [score]


@pytest.mark.parametrize(
    "value",
    ["1", b"1", [1.0], (1.0,), {"score": 1.0}, 1j, np.complex64(1), np.array([1.0]), torch.ones(2), object(),
     np.str_("1")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_number_is_refused_with_what_is_expected(value):
    sentence = "the function returned .* and not a number: expected a number, or None to abstain"
    with pytest.raises(RewardError, match=f"(?s)Reward 'mine' failed with TypeError: {sentence}"):
        score_samples({"mine": Function(lambda **_: value)}, [sample("")])


@pytest.mark.parametrize(
    ("signature", "value", "expected"),
    [
        ("trl", 1.0, "returned 1.0: expected a list of 2 numbers, one a response"),
        ("trl", None, "returned None: expected a list of 2 numbers"),
        ("trl", "10", "returned '10': expected a list of 2 numbers"),
        ("trl", {"a": 1, "b": 2}, "expected a list of 2 numbers"),
        ("trl", [1.0], r"returned \[1.0\]: expected a list of 2 numbers"),
        ("trl", torch.tensor(1.0), r"returned tensor\(1.\): expected a list of 2"),
        ("trl", ["1", "0"], "returned '1', a str and not a number"),
        ("verl", {"acc": 1.0}, r"returned {'acc': 1.0}: expected a number or a dict with score"),
        ("verl", [1.0], r"returned \[1.0\], a list and not a number"),
    ],
)
def test_what_is_no_result_of_the_signature_is_refused(signature, value, expected):
    reward = Function(lambda **_: value, signature=signature)
    with pytest.raises(TypeError, match=expected):
        reward.score([sample("a"), sample("b")])


@pytest.mark.parametrize("value", [np.array([1, 0]), torch.tensor([1.0, 0.0]), (True, np.bool_(False))])
def test_trls_numbers_may_come_in_any_row(value):
    assert Function(lambda **_: value, signature="trl").score([sample("a"), sample("b")]) == [1.0, 0.0]


def test_where_every_sample_fails_alike_the_advice_is_not_to_skip_them():
    with pytest.raises(RewardError) as info:
        score_samples({"mine": Function(lambda **_: "1")}, [sample("a"), sample("b")])
    assert "abstain would skip such samples" not in str(info.value)
    assert str(info.value).endswith(
        "; so do all 2 samples of the batch, and on_error: abstain would skip every one: correct the reward, "
        "or the data that it reads."
    )


@pytest.mark.parametrize("other", ["good", "worse"])
def test_where_some_samples_do_not_fail_or_otherwise_the_advice_is_to_skip_such(other):
    def picky(*, prompt, response, answer, metadata):
        return {"bad": "1", "good": 1.0}[response]

    for responses in ((other, "bad", "bad"), ("bad", other)):
        with pytest.raises(RewardError, match="on_error: abstain would skip such samples"):
            score_samples({"mine": Function(picky)}, [sample(response) for response in responses])


# ------------------------------------------------------------ in workers


@pytest.mark.parametrize(
    ("function", "signature", "scores"),
    [
        (worker_calls.trl, "trl", [1.0, None]),
        (functools.partial(worker_calls.trl, scale=2.0), "trl", [2.0, None]),
        (worker_calls.trl_array, "trl", [1.0, 0.0]),
        (worker_calls.verl, "verl", [1.0, 0.0]),
    ],
)
def test_a_worker_calls_each_signature_with_one_sample(function, signature, scores):
    reward = WorkerFunction(function, signature=signature)
    assert reward.score([sample("5"), sample("", templated=False)]) == scores


def test_what_a_worker_gets_back_is_checked_as_here():
    reward = WorkerFunction(worker_calls.wrong, signature="verl")
    with pytest.raises(RewardError, match=r"returned {'acc': 1}: expected a number or a dict with score"):
        score_samples({"mine": reward}, [sample("5")])
    with pytest.raises(RewardError, match=r"so do all 2 samples of the batch"):
        score_samples({"mine": reward}, [sample("5"), sample("6")])


def test_workers_await_nothing():
    with pytest.raises(ValueError, match=r"^function is a coroutine function, which workers do not await"):
        WorkerFunction(soon)


# ------------------------------------------------------------ as a command


def test_it_is_refused_before_a_model_or_an_engine_and_the_fix_works(
    refused: Refused, over_a_run: OverARun, fit: Fit
) -> None:
    words = f"--model.rewards.mine Function --model.rewards.mine.function {__name__}.trl"
    text = refused(over_a_run, words)
    assert re.search(
        rf"error: model\.rewards\.mine\.function=trl takes \(prompts, .*{OURS}: set signature to trl$", text
    )
    words += " --model.rewards.mine.signature trl --trainer.max_epochs 1 --data.val null"
    run = fit(*words.split())
    [row] = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()][:1]
    assert row["rewards"]["mine"] == row["response_tokens"]


def test_a_missing_column_is_refused_before_an_engine(refused: Refused, over_a_run: OverARun) -> None:
    words = f"--model.rewards.mine Function --model.rewards.mine.function {__name__}.trl_of_columns"
    text = refused(over_a_run, f"{words} --model.rewards.mine.signature trl")
    assert re.search(
        r"error: model\.rewards\.mine\.function takes level, and the data has no such column", text
    )


# ------------------------------------------------------------ what TRL and verl really ship


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = os.environ.get("GRPO_PL_PARITY")
    if folder is None:
        pytest.skip("needs GRPO_PL_PARITY, a folder with the peers' unpacked wheels")
    if not all((Path(folder) / peer).is_dir() for peer in ("trl", "verl")):
        pytest.skip("GRPO_PL_PARITY has no unpacked wheels of trl and verl")
    monkeypatch.syspath_prepend(str(Path(folder) / "trl"))
    return Path(folder)


@pytest.mark.parity
@pytest.mark.usefixtures("wheels")
def test_the_rewards_of_trl_score() -> None:
    pytest.importorskip("math_verify")
    from trl import rewards

    texts = [r"<think>2 + 3</think> \boxed{5}", r"\boxed{6}", r"<think>long</think> so \boxed{5}"]
    samples = [
        sample(text, ids=tuple(range(n)), messages=CHAT) for text, n in zip(texts, (2, 5, 20), strict=True)
    ]
    expected = {
        rewards.accuracy_reward: [1.0, 0.0, 1.0],
        rewards.reasoning_accuracy_reward: [1.0, 0.0, 1.0],
        rewards.think_format_reward: [1.0, 0.0, 1.0],
        rewards.get_soft_overlong_punishment(20, 10): [0.0, 0.0, -1.0],
        rewards.get_repetition_penalty_reward(2): [0.0, 0.0, 0.0],
    }
    for function, scores in expected.items():
        assert Function(function, signature="trl").score(samples) == scores
        with pytest.raises(ValueError, match="set signature to trl"):
            Function(function)
    [first, *_] = Function(rewards.get_cosine_scaled_reward(100), signature="trl").score(samples)
    assert 0.99 < first < 1.0


@pytest.mark.parity
def test_the_rewards_of_verl_score(wheels: Path) -> None:
    scores = wheels / "verl" / "verl" / "utils" / "reward_score"
    for name, right in {
        "gsm8k": "so\n#### 5",
        "math_reward": r"so \boxed{5}",
        "math_dapo": "Answer: 5",
    }.items():
        spec = importlib.util.spec_from_file_location(f"verl_{name}", scores / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        first, second = Function(module.compute_score, signature="verl").score([sample(right), sample("no")])
        assert first == 1.0
        assert second in (0.0, -1.0)
        with pytest.raises(ValueError, match="set signature to verl"):
            Function(module.compute_score)
