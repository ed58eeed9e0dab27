"""How a command ends: a user's mistake in one sentence, a bug with its traceback."""

import pytest
from helpers.commands import Refused

from grpo_pl.config.exits import mistakes_answered
from grpo_pl.functional.success_rates import majority_at_k
from grpo_pl.losses import ClippedSurrogate


def test_a_mistake_of_the_user_ends_in_one_sentence_and_code_2(refused: Refused) -> None:
    sentence = refused(mistakes_answered()(ClippedSurrogate), clip_low=2.0)
    assert sentence == "grpo_pl: error: clip_low=2.0: expected a number in [0, 1]"


def test_a_value_error_of_our_own_code_is_a_bug_and_shows_its_traceback() -> None:
    with pytest.raises(ValueError, match="zip"), mistakes_answered():
        majority_at_k(["4", "5"], [True], 1)
