"""Environments of OpenEnv, with the real library where it is installed: it and vLLM need different mcp."""

import pytest
from helpers.playing import answers

from grpo_pl.environments.gym_shape import OpenEnv
from grpo_pl.environments.sessions import Failure
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Turn

PROMPT = Prompt(token_ids=[], text="Play.", answer="")
GAME, GUESS = "helpers.openenv_games.Number", "helpers.openenv_games.Guess"


def say(text: str) -> Turn:
    return Turn(messages=[{"role": "user", "content": text}])


def test_a_game_is_played_to_its_end():
    game = OpenEnv(GAME, GUESS, writes="guess", reads="hint", arguments={"high": 5})
    assert answers(game, PROMPT, "4", "1", "2", seed=5 * 2**40 + 2) == [
        *(say("Below 5."), say("Lower."), say("Higher.")),
        Turn(messages=[{"role": "user", "content": "Right."}], reward=1.0, done=True),
    ]


def test_an_action_that_is_none_fails_the_episode():
    [_, failure] = answers(OpenEnv(GAME, GUESS, writes="guess", reads="hint"), PROMPT, "two")
    assert isinstance(failure, Failure)
    assert failure.message.startswith("OpenEnv.step: ValueError: invalid literal for int()")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"writes": "move"}, "writes=move: Guess has no such field; it has metadata, guess"),
        ({"writes": "metadata"}, "writes=metadata: it is no text in Guess; choose one that is"),
        ({"reads": "board"}, "reads=board: Hint has no such field; it has done, reward, metadata, hint"),
        ({"action": "nowhere.Guess"}, "action: nowhere.Guess cannot be imported (ModuleNotFoundError"),
        ({"make": GUESS}, f"make={GUESS}: it makes no environment of arguments={{}} (ValidationError: "),
        ({"make": "builtins.dict"}, "make=builtins.dict: what it makes has no method reset"),
    ],
)
def test_what_does_not_fit_is_refused(changed, sentence):
    with pytest.raises(ConfigError) as refused:
        OpenEnv(**{"make": GAME, "action": GUESS, "writes": "guess", "reads": "hint"} | changed)
    assert str(refused.value).startswith(sentence)
