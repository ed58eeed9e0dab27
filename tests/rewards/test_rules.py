import copy
import pickle
import re
from decimal import Decimal

import pytest
from helpers import worker_calls
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from grpo_pl.rewards.base import RewardFunction
from grpo_pl.rewards.numerals import last_number, lone_number
from grpo_pl.rewards.rules import (
    ExactMatch,
    Format,
    Function,
    LastNumber,
    LengthPenalty,
    SoftOverlong,
)
from grpo_pl.types import Prompt, Sample


def sample(response: str, answer: str = "", tokens: int = 0, **metadata: object) -> Sample:
    prompt = Prompt(token_ids=[1], text="question", answer=answer, metadata=metadata)
    return Sample(prompt=prompt, response=response, response_tokens=tokens, truncated=False)


def scores(reward, response: str, answer: str = "") -> float | None:
    return reward.score([sample(response, answer)])[0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The total is 1,234.", "1234"),
        ("3.0", "3"),
        ("3.10", "3.1"),
        ("007", "7"),
        ("0.50", "0.5"),
        ("costs $.50", "0.5"),
        ("-5", "-5"),
        ("= -5 degrees", "-5"),
        ("x=-5", "-5"),
        ("\N{MINUS SIGN}5", "-5"),
        ("-0.0", "0"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        (r"-\$1{,}234", "-1234"),
        (r"\$10\,000", "10000"),
        ("**$1,234.50**.", "1234.5"),
        ("7-5", "5"),
        ("7 - 5", "5"),
        ("(3)-5", "5"),
        ("COVID-19", "19"),
        ("pages 3-5", "5"),
        ("1,2,3", "3"),
        ("12,345,678", "12345678"),
        ("1,2345", "2345"),
        ("18 dollars for 2 days", "2"),
        ("50%", "50"),
        ("1/2", "2"),
        ("\N{ARABIC-INDIC DIGIT THREE}", None),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number_is_spelled_canonically(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["1/2", "so 48 / 2", r"\frac{1}{2}", r"\frac12", r"\sqrt{2}", "3.5 x 10^3", "10^{-3}", "1e3", "at 3:30"],
)  # fmt: skip
def test_a_number_within_a_fraction_a_power_or_a_time_is_not_a_number(text):
    assert lone_number(text) is None
    assert scores(LastNumber(), text, last_number(text)) == 0.0


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3))
def test_last_number_agrees_with_decimal_in_every_spelling(value):
    for spelling in (f"{value:f}", f"{value:,f}", f"so ${value:f}.", f"5 + 7 = {value:,f} apples"):
        found = last_number(spelling)
        assert found is not None
        assert Decimal(found) == value
        assert found == last_number(f"{value.normalize():f}")


@given(st.text(alphabet=st.sampled_from("0123456789.,-$%#\\{}!()/ exa\N{MINUS SIGN}\n"), max_size=60))
def test_spelling_a_spelled_number_changes_nothing(text):
    number = last_number(text)
    assert number == last_number(text)
    assert number is None or last_number(number) == number == lone_number(number)


@given(st.text(max_size=300))
def test_last_number_reads_any_text(text):
    assert (last_number(text) is None) == (re.search("[0-9]", text) is None)


@pytest.mark.parametrize(
    "response",
    ["9" * 1_000_000, "1," * 500_000, "123," * 250_000 + "1", "-" * 1_000_000, "$" * 1_000_000,
     "." * 1_000_000, "1 " * 500_000, "1{,}" * 250_000, "\x00\x1b\x07" * 300_000, "(" * 1_000_000],
    ids=lambda text: repr(text[:5]),
)  # fmt: skip
@pytest.mark.timeout(180)
def test_last_number_does_not_hang_on_a_megabyte(response):
    LastNumber().score([sample(response, "5")])


def test_a_number_of_a_million_digits_is_compared_digit_by_digit():
    digits = "9" * 1_000_000
    assert scores(LastNumber(), digits, digits) == 1.0
    assert scores(LastNumber(), digits[:-1] + "8", digits) == 0.0
    assert scores(LastNumber(), digits, "9") == 0.0


def test_last_number_takes_the_gold_answer_behind_the_hashes():
    assert scores(LastNumber(), "so 72", "48+24 = <<48+24=72>>72 clips.\n#### 72") == 1.0
    assert scores(LastNumber(), "72 or 73", "#### 72") == 0.0
    assert scores(LastNumber(), "72", "in 3 days 72") == 1.0
    assert scores(LastNumber(), "no idea", "#### 72") == 0.0


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("#### 42\nNote: that is 3 a day.", "42", 1.0),
        ("#### 42 (this took 3 steps)", "42", 1.0),
        ("#### $42 per day, for 7 days", "42", 1.0),
        ("#### The answer is 42", "#### 42", 1.0),
        ("#### 40 + 2 = 42", "42", 1.0),
        ("#### 41\n42", "42", 0.0),
        ("#### Step 1\n40\n#### Step 2\n40 + 2 = 42", "42", 1.0),
        ("#### 42 or 43", "43", 0.0),
        ("2", "1/2", 0.0),
        ("0.5", "1/2", 1.0),
        ("#### 1/2", "0.5", 1.0),
        ("#### 1e3", "1000", 1.0),
        (r"#### \boxed{72}", "72", 1.0),
        (r"#### $\boxed{72}$ clips", "73", 0.0),
        ("5 m^2", "5", 1.0),
        ("The area is 5 cm^{2}, as it was asked", "5", 1.0),
        ("5 x^2", "5", 0.0),
        ("$70k", "70000", 1.0),
        ("$70k", "70", 0.0),
        ("He earns $70k, more or less", "70", 0.0),
        ("2½", "2.5", 1.0),
        ("2½", "2", 0.0),
        ("2½ of them or so, is my guess", "2", 0.0),
        ("3", "1/3", None),
        ("30", "3:30", None),
        ("2", r"\sqrt{2}", None),
    ],
)
def test_last_number_reads_what_stands_behind_the_hashes_and_no_part_of_a_number(response, answer, score):
    assert scores(LastNumber(), response, answer) == score


def test_verifiers_abstain_exactly_where_they_cannot_score():
    for reward, answer in ((LastNumber(), "none"), (LastNumber(), "5 #### x"), (ExactMatch(), " \n")):
        assert scores(reward, "5", answer) is None
        assert not reward.can_score(sample("", answer).prompt)
    for reward in (LastNumber(), ExactMatch()):
        assert scores(reward, "", "5") == 0.0
        assert reward.extract("") is None
        assert reward.can_score(sample("", "5").prompt)


def test_exact_match_strips_and_folds_only_what_it_is_told_to():
    assert scores(ExactMatch(), " New York\n", "New York") == 1.0
    assert scores(ExactMatch(), "new york", "New York") == 0.0
    assert scores(ExactMatch(), "New  York", "New York") == 0.0
    assert scores(ExactMatch(fold_case=True), "NEW YORK", "New York") == 1.0
    assert scores(ExactMatch(fold_case=True), "new  york", "New York") == 0.0
    assert scores(ExactMatch(fold_whitespace=True), "New \n York", "New York") == 1.0
    assert scores(ExactMatch(fold_case=True), "STRASSE", "Stra\N{LATIN SMALL LETTER SHARP S}e") == 1.0
    assert ExactMatch(fold_case=True, fold_whitespace=True).extract(" Yes\t Sir ") == "yes sir"


def test_format_matches_the_whole_response_across_lines():
    reward = Format("<think>.*</think>")
    assert scores(reward, "<think>a\nb</think>") == 1.0
    assert scores(reward, "<think>a</think> tail") == 0.0
    assert scores(Format("<think>.*</think>", full_match=False), "head <think>a</think> tail") == 1.0
    assert scores(Format("x", full_match=False), "") == 0.0


@pytest.mark.parametrize("opened", ["<think>\n", "<think>\n\n</think>\n\n", "<reasoning>"])
def test_format_reads_what_the_prompt_has_opened_unless_told_not_to(opened):
    tag = re.match("<(.*?)>", opened)[1]
    whole = rf"<{tag}>.*?</{tag}>\s*<answer>.*?</answer>"
    response = "<answer>5</answer>" if "/" in opened else f"so</{tag}>\n<answer>5</answer>"
    prompt = Prompt(token_ids=[1], text="2+3", answer="5", opened=opened)
    sample = Sample(prompt=prompt, response=response, response_tokens=1, truncated=False)
    assert Format(whole).score([sample]) == [1.0]
    assert Format(whole, opened=False).score([sample]) == [0.0]
    assert Format(rf"[^<]*(</{tag}>\s*)?<answer>.*", opened=False).score([sample]) == [1.0]
    sample.response = "5"
    assert Format(whole).score([sample]) == [0.0]


def test_a_bad_pattern_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^pattern='\(': expected a regular expression \(missing \)"):
        Format("(")


def test_length_penalty_is_linear_and_ends_at_minus_one():
    reward = LengthPenalty(100)
    assert reward.score([sample("", tokens=n) for n in (0, 25, 100, 200)]) == [0.0, -0.25, -1.0, -1.0]


def test_soft_overlong_is_equation_13_of_dapo():
    # L_max = 20,480 and L_cache = 4,096: free up to 16,384; 18,432 is half-way; 20,480 and beyond cost 1.
    tokens = [0, 16_384, 16_385, 18_432, 20_480, 20_481, 10**6]
    expected = [0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0, -1.0]
    assert SoftOverlong(20_480, 4_096).score([sample("", tokens=n) for n in tokens]) == expected


@pytest.mark.parametrize("buffer_tokens", [0, -1, 101])
def test_a_buffer_outside_the_limit_is_refused(buffer_tokens):
    with pytest.raises(ValueError, match=r"^buffer_tokens=.*: expected 1 or more and at most max_tokens="):
        SoftOverlong(100, buffer_tokens)


def test_a_length_limit_below_one_token_is_refused():
    with pytest.raises(ValueError, match=r"^max_tokens=0: expected 1 or more"):
        LengthPenalty(0)


@pytest.mark.parametrize(
    "reward", [LastNumber(), ExactMatch(), Format("5"), LengthPenalty(9), SoftOverlong(9, 3)]
)
def test_rewards_survive_pickle_and_copy(reward):
    samples = [sample("5", "5", tokens=7)]
    for other in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        assert other.score(samples) == reward.score(samples)


def test_options_of_the_base_class_reach_every_rule():
    for reward in (
        LastNumber(weight=0.5, on_error="abstain"),
        ExactMatch(weight=0.5, on_error="abstain"),
        Format("x", weight=0.5, on_error="abstain"),
        LengthPenalty(9, weight=0.5, on_error="abstain"),
        SoftOverlong(9, 3, weight=0.5, on_error="abstain"),
        Function(worker_calls.plus_metadata, weight=0.5, on_error="abstain"),
    ):
        assert (reward.weight, reward.on_error) == (0.5, "abstain")


def test_a_config_names_rewards_by_class_and_overrides_single_options():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=dict[str, RewardFunction])
    config = (
        '{"correct": "LastNumber", '
        '"format": {"class_path": "Format", "init_args": {"pattern": "x", "weight": 0.2}}, '
        '"mine": {"class_path": "Function", "init_args": {"function": "helpers.worker_calls.plus_metadata"}}}'
    )
    arguments = ["--rewards", config, "--rewards.format.weight", "0.3", "--rewards.mine.on_error", "abstain"]
    rewards = parser.instantiate(parser.parse_args(arguments)).rewards
    assert isinstance(rewards["correct"], LastNumber)
    assert isinstance(rewards["format"], Format)
    assert rewards["format"].weight == 0.3
    assert rewards["mine"].function is worker_calls.plus_metadata
    assert rewards["mine"].on_error == "abstain"
