"""The environments that come with grpo_pl, played in their processes."""

import inspect
import re

import pytest

from grpo_pl.environments.base import Environment
from grpo_pl.environments.calculator import Calculator
from grpo_pl.environments.guess_the_number import GuessTheNumber
from grpo_pl.environments.sessions import Failure, Sessions
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Call, Prompt, Said, Turn

PROMPT = Prompt(token_ids=[], text="Play.", answer="")


def play(environment: Environment, *said: Said, seed: int = 0) -> list[Turn | Failure]:
    sessions = Sessions(environment, timeout_s=60.0, memory_gib=1.0, processes=1)
    try:
        sessions.reset(0, PROMPT, seed)
        turns = [*sessions.answers(60.0)]
        for each in said:
            sessions.step(0, each)
            turns += sessions.answers(60.0)
    finally:
        sessions.close()
    return [turn for _, turn in turns]


def say(text: str) -> Turn:
    return Turn(messages=[{"role": "user", "content": text}])


def calculated(*expressions: str) -> list[str]:
    calls = tuple(Call(name="calculate", arguments={"expression": each}) for each in expressions)
    [_, turn] = play(Calculator(), Said(text="", attempts=calls))
    return [message["content"] for message in turn.messages]


def test_the_calculator_calculates_exactly():
    assert calculated(
        "1234 + 8766", " (12 + 7) * -3", "7 / 2", "6/3", "2 - -2", f"{'9' * 90} * {'9' * 90}"
    ) == [
        *("10000", "-57", "7/2", "2", "4", str((10**90 - 1) ** 2)),
    ]


@pytest.mark.parametrize(
    "expression",
    [
        *("", "1 +", "2 ** 9", "1.5 + 1", "'a' * 9", "True + 1", "__import__('os')", "x", "9 // 2", "1 / 0"),
        *("(" * 150, "-" * 199 + "1", "1 + " * 1000 + "1", "\0", "\n1\n+1", "1 if 1 else 2", "[1]", "1, 2"),
    ],
)
def test_what_the_calculator_cannot_do_goes_back_as_an_error_and_the_episode_goes_on(expression):
    step = Said(text="", attempts=(Call(name="calculate", arguments={"expression": expression}),))
    turn = Calculator().step(step)
    right = {"-" * 199 + "1": "-1"}.get(expression, "Error: ")
    assert turn.messages[0]["content"].startswith(right)


def test_the_number_is_found_by_halving_and_is_that_of_the_seed():
    for seed in range(20):
        game, low, high = GuessTheNumber(), 1, 100
        assert game.reset(PROMPT, seed) == say("I think of a number from 1 to 100. Which one is it?")
        while (turn := game.step(Said(text=f"2 tries? No: {(guess := (low + high) // 2)}!"))).messages:
            assert turn in (say("It is higher."), say("It is lower."))
            low, high = (guess + 1, high) if turn == say("It is higher.") else (low, guess - 1)
        assert turn == Turn(reward=1.0, done=True)
    assert play(GuessTheNumber(), Said(text=str(guess)), seed=seed)[1] == turn


def test_the_last_guess_ends_the_game_and_no_number_is_a_guess_too():
    said = [Said(text=text) for text in ("What?", "0", "9" * 5000)]
    [_, *turns] = play(GuessTheNumber(1, 10, guesses=3), *said)
    contents = [message["content"] for turn in turns for message in turn.messages]
    assert contents == ["Say a number.", "It is higher."]
    assert turns[-1] == Turn(done=True)


def test_games_that_cannot_be_won_are_refused():
    with pytest.raises(ConfigError, match=r"^high=1: expected 5 or more$"):
        GuessTheNumber(5, 1)
    with pytest.raises(ConfigError, match=r"^guesses=0: expected 1 or more$"):
        GuessTheNumber(guesses=0)


@pytest.mark.parametrize("environment", [Calculator, GuessTheNumber])
def test_an_environment_is_at_most_25_lines_of_code(environment):
    lines = inspect.getsource(inspect.getmodule(environment)).splitlines()
    code = [line for line in lines if line.strip() and not re.match(r'\s*("""|import|from|@)', line)]
    assert len(code) <= 25
