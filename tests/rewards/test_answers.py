"""Answers as models write them, against verdicts by hand: answers.jsonl, with real gold answers of GSM8K."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("math_verify")

from grpo_pl.rewards.answers import MAX_ANSWER_CHARS, find_answer, hashed_answer
from grpo_pl.rewards.math_answer import MathAnswer
from grpo_pl.rewards.quantities import Quantity, quantity, same
from grpo_pl.types import Prompt, Sample

ROWS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text().splitlines()]
REWARD = MathAnswer()
MARKS = (r"\boxed", "<answer>", "####", "nswer is", "nswer:")


def sample(response: str, gold: str) -> Sample:
    prompt = Prompt(token_ids=[1], text="question", answer=gold)
    return Sample(prompt=prompt, response=response, response_tokens=1, truncated=False)


def score(response: str, gold: str) -> float | None:
    return REWARD.score([sample(response, gold)])[0]


def test_the_table_has_hundreds_of_answers_and_a_third_of_them_wrong():
    assert len(ROWS) >= 300
    assert sum(row["verdict"] == 0 for row in ROWS) >= 0.35 * len(ROWS)
    assert len({(row["gold"], row["response"]) for row in ROWS}) == len(ROWS)


def test_verdicts_agree_with_those_of_people_on_99_of_100_answers():
    scores = REWARD.score([sample(row["response"], row["gold"]) for row in ROWS])
    others = [(row, got) for row, got in zip(ROWS, scores, strict=True) if got != row["verdict"]]
    assert len(others) <= 0.01 * len(ROWS), others


def test_no_wrong_answer_with_a_mark_of_its_own_is_paid():
    """What a policy could learn to exploit: hedges, lists, near misses in a box, tag or after `####`."""
    marked = [row for row in ROWS if row["verdict"] == 0 and any(m in row["response"] for m in MARKS)]
    scores = REWARD.score([sample(row["response"], row["gold"]) for row in marked])
    assert [row for row, got in zip(marked, scores, strict=True) if got != 0.0] == []


@pytest.mark.parametrize(
    "answer",
    [r"\boxed{72}", "<answer>72</answer>", "#### 72", "The answer is 72.", "**72** clips", r"$x = 72$"],
)
def test_an_answer_is_found_before_any_length_of_text_without_one(answer):
    assert score(f"{answer}\n{'She likes to sell clips. ' * 400}", "72") == 1.0
    assert score(f"{'She had 3 clips. ' * 400}\n{answer}\n{'She likes to sell. ' * 400}", "72") == 1.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>9</think>7", "7"),
        ("<think>a</think>8<think>b</think>7", "7"),
        ("9</think>\n\n7", "7"),
        ("<think>9</think>", None),
        ("<think>\nso the answer is 9", None),
        (r"<think> so \boxed{9}", "9"),
        ("<thinking>9</thinking>7", "7"),
        ("[THINK]9[/THINK]7", "7"),
        (r"<think>\boxed{9}</think> no idea", None),
    ],
)
def test_what_follows_the_thought_is_the_response(response, answer):
    assert find_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1} #### 2", "2"),
        (r"#### 2 \boxed{1}", "1"),
        (r"<answer>3</answer> \boxed{1}", "1"),
        (r"\boxed{1} <answer>3</answer>", "3"),
        (r"<answer>so \boxed{4} it is</answer>", "4"),
        ("The answer is 5. #### 6", "6"),
        ("#### 6\nThe answer is 5.", "5"),
        ("#### 6\nThe answer is correct.", "6"),
        ("#### 6\n#### Check\n2 + 4 = 6, and 6 - 4 = 2", "6"),
        (r"\boxed{1} is not what I mean by 9", "1"),
        ("**7** of them in 3 days", "7"),
        ("1. **Step 1:** add 3\n2. **Step 2:** so **7** in 3 days", "7"),
    ],
)
def test_the_last_mark_that_holds_an_answer_counts(response, answer):
    assert find_answer(response) == answer


@pytest.mark.parametrize(
    "spellings",
    [
        (
            "2.5",
            "5/2",
            "2 1/2",
            r"\frac{5}{2}",
            r"\boxed{2\frac12}",
            "#### 2.50",
            "2½",
            "$2.50",
            "x = 2.5 kg",
        ),
        ("3500", "3.5 x 10^3", r"$3.5 \times 10^{3}$", "3.5e3", "3,500", r"\boxed{3{,}500}", "3.5 thousand"),
        ("-1/2", "-0.5", r"\boxed{-\frac{1}{2}}", "\N{MINUS SIGN}.5", "-50%"),
        ("3:30 pm", "<answer>3:30 PM</answer>", "#### 3:30 p.m."),
        ("Monday", r"\boxed{\text{Monday}}", "The answer is Monday.", "<answer> MONDAY </answer>"),
    ],
)
def test_equal_answers_are_equal_strings_so_that_votes_add_up(spellings):
    assert len({REWARD.extract(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    "text",
    ["72 or 73", "72x", "72 x", "2 hours 5 minutes", "5 ft 3 in", "72 more than that", "2x = 72", "3!", "1/0",
     "1e9999", "7 2", "72 - m", "72/m", "1,2", "sin 30", "2**3", "\\pm 3", "x > 3", "", "-", "$", "Step 2"],
)  # fmt: skip
def test_what_is_not_one_number_is_no_quantity(text):
    assert quantity(text) is None


@given(st.fractions(max_denominator=10**6), st.sampled_from(["{}", "${}$", "x = {}", "**{}** kg", r"\({}\)"]))
def test_a_fraction_is_read_exactly_in_every_dress(value: Fraction, dress: str):
    assert quantity(dress.format(value)) == Quantity(value)
    assert quantity(dress.format(rf"\frac{{{value.numerator}}}{{{value.denominator}}}")) == Quantity(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=4))
def test_a_decimal_is_equal_to_itself_and_to_no_other(value):
    number, spelled = quantity(f"${value:,f}"), Quantity(Fraction(value))
    assert number == spelled
    assert same(spelled, Quantity(spelled.value, percent=True))
    assert not same(spelled, Quantity(spelled.value + Fraction(1, 10**4)))


@given(st.text(alphabet=st.sampled_from("0123456789.,-+/:$%#*`<>(){}[]\\^= \n\u00bdax"), max_size=80))
def test_finding_never_fails_and_finds_a_short_text(text):
    for find in (find_answer, hashed_answer):
        found = find(text)
        assert found is None or len(found) <= MAX_ANSWER_CHARS
        assert found is None or quantity(found) is None or str(quantity(found))
