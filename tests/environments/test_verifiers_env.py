"""Environments of the real verifiers library."""

import signal
from collections.abc import Iterator

import pytest
from helpers.playing import answers

from grpo_pl.environments.sessions import Failure, Sessions
from grpo_pl.environments.verifiers_env import Verifiers
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Call, Prompt, Said, Turn

PROMPT = Prompt(token_ids=[], text="Play.", answer="")
GUESS = "helpers.verifiers_games.guess"
HIGHER, LOWER = (Turn(messages=[{"role": "user", "content": text}]) for text in ("Higher.", "Lower."))


def opening(low: int) -> Turn:
    question = {"role": "user", "content": f"Guess from {low} to {low + 9}."}
    return Turn(messages=[{"role": "system", "content": "Play."}, question])


@pytest.fixture(scope="module")
def guessing() -> Iterator[Sessions]:
    started = Sessions(Verifiers(GUESS), timeout_s=60.0, memory_gib=2.0, processes=1)
    yield started
    started.close()


def test_a_game_is_played_turn_by_turn_and_pays_what_its_rubric_says(guessing):
    assert answers(guessing, PROMPT, "4", "7", "6", seed=3 * 10**20 + 1) == [
        *(opening(1), HIGHER, LOWER, Turn(reward=2 / 3, done=True)),
    ]
    assert answers(guessing, PROMPT, "6", seed=1) == [opening(1), Turn(reward=2.0, done=True)]


def test_it_ends_where_the_library_stops_it(guessing):
    assert answers(guessing, PROMPT, "9", "9", "9", seed=2) == [opening(2), LOWER, LOWER, Turn(done=True)]


def test_tools_of_the_library_are_called_and_counted_by_its_rubric():
    environment = Verifiers("helpers.verifiers_games.sums")
    [tool] = environment.tools
    assert tool["function"]["name"] == "add"
    assert tool["function"]["parameters"]["properties"]["b"]["description"] == "The other."
    add, subtract = (Call(name=name, arguments={"a": 2, "b": 3}) for name in ("add", "subtract"))
    said = Said(text="", attempts=("no JSON", add, subtract)), Said(text="", attempts=("x",)), "5"
    contents = ["Error: no JSON", "5", "'subtract'"]
    assert answers(environment, PROMPT, *said)[1:] == [
        Turn(messages=[{"role": "tool", "content": content} for content in contents]),
        Turn(messages=[{"role": "tool", "content": "Error: x"}]),
        Turn(reward=3.0 + 2 * 0.5, done=True),
    ]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (["9", "9", "-1"], "RuntimeError: Error calling reward function won: '-1'"),
        (["0"], "RuntimeError: it changes what was said before"),
        (["five"], "ValueError: invalid literal for int()"),
    ],
)
def test_what_the_library_would_pay_0_for_or_cannot_be_played_fails_the_episode(guessing, said, sentence):
    failure = answers(guessing, PROMPT, *said)[-1]
    assert isinstance(failure, Failure)
    assert failure.kind == "error"
    assert failure.message.startswith(f"Verifiers.step: {sentence}")


def test_ctrl_c_and_sigterm_stay_with_the_run():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    Verifiers(GUESS)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (GUESS, {"judged": True}, "Guess asks a judge behind a URL; choose another one"),
        (GUESS, {"grouped": True}, "Guess rewards whole groups; choose another one"),
        ("helpers.verifiers_games.group", None, "EnvGroup is no MultiTurnEnv; choose another one"),
        ("helpers.verifiers_games.add", {"a": 1, "b": 2}, "what it makes has no method rollout"),
        (GUESS, {"size": 1}, "it makes no environment of arguments={'size': 1} (TypeError: "),
    ],
)
def test_what_cannot_be_played_is_refused(make, arguments, sentence):
    with pytest.raises(ConfigError) as refused:
        Verifiers(make, arguments)
    assert str(refused.value).startswith(f"make={make}: {sentence}")
