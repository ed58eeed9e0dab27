"""Environments in the shape of Gymnasium, with the real library."""

from typing import Any

import pytest
from helpers.playing import answers

from grpo_pl.environments.gym_shape import Gymnasium
from grpo_pl.environments.sessions import Failure
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Turn

PROMPT = Prompt(token_ids=[], text="Play.", answer="")


def say(text: str, **fields: Any) -> Turn:
    return Turn(messages=[{"role": "user", "content": text}], **fields)


def play(game: Gymnasium, *said: str, seed: int = 0) -> list[Turn | Failure]:
    return answers(game, PROMPT, *said, seed=seed)


def test_a_game_of_gymnasium_is_played_to_its_end():
    game = Gymnasium("helpers.gymnasium_games.frozen_lake", {"side": 2})
    assert play(game, "right", "down") == [
        say("You are at 0."),
        say("You are at 1."),
        say("You are at 3.", reward=1.0, done=True),
    ]
    assert play(game, "down")[-1] == say("You are at 2.", done=True)


def test_a_game_that_is_cut_off_is_over():
    assert play(Gymnasium("helpers.gymnasium_games.frozen_lake"), *["up"] * 3)[-1] == say(
        "You are at 0.", done=True
    )


def test_the_seed_of_an_episode_decides_what_is_drawn():
    game = Gymnasium("helpers.gymnasium_games.Draws")
    large = 2**62 + 3
    assert play(game, seed=large) == play(game, seed=large) != play(game, seed=4)


def test_a_game_that_raises_fails_its_episode():
    [_, failure] = play(Gymnasium("helpers.gymnasium_games.frozen_lake"), "jump")
    assert isinstance(failure, Failure)
    assert failure.kind == "error"
    assert failure.message.startswith("Gymnasium.step: ValueError: 'jump'")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        ("gymnasium.no_such", "it makes no environment of arguments={} (AttributeError: "),
        ("maze", "it makes no environment of arguments={} (ValueError: Empty module name)"),
        ("gymnasium.make", "it makes no environment of arguments={} (TypeError: "),
        ("builtins.dict", "what it makes has no method reset"),
    ],
)
def test_what_makes_no_environment_is_refused(make, sentence):
    with pytest.raises(ConfigError) as refused:
        Gymnasium(make)
    assert str(refused.value).startswith(f"make={make}: {sentence}")
