"""Questions that may be answered again, with the tasks of the real reasoning-gym."""

from typing import Any

import pytest
from helpers.playing import answers

from grpo_pl.environments.sessions import Failure
from grpo_pl.environments.try_again import TryAgain
from grpo_pl.prompts import ReasoningGym
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Turn

VERDICT = "grpo_pl.rewards.task_verifiers.verdict"
WRONG = Turn(messages=[{"role": "user", "content": "That is not right. Try again."}])


def asked(task: str, row: int = 0, **config: Any) -> Prompt:
    question = ReasoningGym(task, size=row + 1, seed=1, config=config)[row]
    return Prompt(token_ids=[], text=question.text, answer=question.answer, metadata=question.metadata)


def play(prompt: Prompt, *said: str, **options: Any) -> list[Turn | Failure]:
    opening, *turns = answers(TryAgain(VERDICT, **options), prompt, *said)
    assert opening == Turn()
    return turns


def test_a_wrong_answer_may_be_mended():
    prompt = asked("leg_counting")
    right = prompt.answer
    assert play(prompt, "-1", "I do not know", f"So <answer>{right}.0</answer>") == [
        *(WRONG, WRONG, Turn(reward=1.0, done=True)),
    ]
    assert play(prompt, right) == [Turn(reward=1.0, done=True)]


def test_the_last_answer_counts():
    assert play(asked("leg_counting"), "-1", "-1", tries=2) == [WRONG, Turn(reward=0.0, done=True)]


def test_where_several_answers_are_right_each_is_and_an_answer_that_fails_the_verifier_is_wrong():
    prompt = asked("n_queens")
    other = [
        answer for answer in prompt.metadata["entry"]["metadata"]["valid_answers"] if answer != prompt.answer
    ]
    texts = ["[[[]]]", "x", (other or [prompt.answer])[0]]
    assert play(prompt, *texts) == [WRONG, WRONG, Turn(reward=1.0, done=True)]


def test_an_answer_without_tasks_of_reasoning_gym_fails_the_episode():
    [failure] = play(Prompt(token_ids=[], text="2 + 3?", answer="5"), "5")
    assert isinstance(failure, Failure)
    assert failure.kind == "error"
    assert failure.message.endswith("in its metadata: set data.train to ReasoningGym")


def test_what_is_no_verdict_is_refused():
    with pytest.raises(ConfigError, match=r"^tries=0: expected 1 or more$"):
        TryAgain(VERDICT, tries=0)
    with pytest.raises(ConfigError, match=r"^verdict: no\.such cannot be imported \(ModuleNotFoundError"):
        TryAgain("no.such")
