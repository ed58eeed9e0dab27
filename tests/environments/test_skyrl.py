"""Environments of the real skyrl_gym."""

from typing import Any

import pytest
from helpers.playing import answers

from grpo_pl.environments.sessions import Failure
from grpo_pl.environments.skyrl import SkyRLGym
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Turn

OWN = "helpers.skyrl_games.Echo"


def asked(answer: str, **columns: Any) -> Prompt:
    messages = [{"role": "user", "content": "2 + 3?"}]
    return Prompt(token_ids=[], text="2 + 3?", answer=answer, messages=messages, metadata=columns)


def test_a_question_is_answered_in_several_turns_for_the_rewards_of_the_library():
    [opening, wrong, right] = answers(SkyRLGym("gsm8k_multi_turn"), asked("5"), "#### 6", "#### 5")
    assert opening == Turn()
    assert isinstance(wrong, Turn)
    assert (wrong.reward, wrong.done) == (0.2 / 5, False)
    assert wrong.messages[0]["content"].startswith("Please provide your step-by-step reasoning")
    assert right == Turn(reward=1.0, done=True)


def test_the_columns_of_a_row_are_its_extras_and_those_of_the_config_go_before():
    prompt = asked("5", extra_info={"max_turns": 2})
    assert answers(SkyRLGym("gsm8k_multi_turn"), prompt, "-", "-")[-1] == Turn(done=True)
    assert answers(SkyRLGym("gsm8k_multi_turn", extras={"max_turns": 1}), prompt, "-")[-1] == Turn(done=True)


def test_an_environment_of_ones_own_opens_with_its_own_words_and_reads_its_config():
    game = SkyRLGym(OWN, env_config={"pays": 0.5}, extras={"greeting": "Hello."})
    hello, bye = ({"role": "user", "content": text} for text in ("Hello.", "bye"))
    prompt = asked("")
    assert answers(game, prompt, "bye") == [
        *(Turn(messages=[*prompt.messages, hello]), Turn(messages=[bye], reward=0.5, done=True)),
    ]


def test_a_row_that_lacks_a_column_fails_its_episode():
    [failure] = answers(SkyRLGym(OWN), asked(""))
    assert isinstance(failure, Failure)
    assert failure.message.startswith("SkyRLGym.reset: ConfigAttributeError: Missing key pays")


def test_what_is_no_environment_is_refused():
    with pytest.raises(
        ConfigError, match=r"^make=gsm9k: skyrl_gym has no such environment; it has aime, gsm8k, "
    ):
        SkyRLGym("gsm9k")
    with pytest.raises(ConfigError, match=r"^make: no\.such cannot be imported \(ModuleNotFoundError"):
        SkyRLGym("no.such")
