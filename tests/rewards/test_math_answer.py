import pickle
import sys
import threading

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify")

from grpo_pl.rewards import mathematics
from grpo_pl.rewards.math_answer import MathAnswer
from grpo_pl.rewards.pool import Workers
from grpo_pl.types import Prompt, Sample

REWARD = MathAnswer()


def sample(response: str, answer: str) -> Sample:
    prompt = Prompt(token_ids=[1], text="question", answer=answer)
    return Sample(prompt=prompt, response=response, response_tokens=1, truncated=False)


def score(response: str, answer: str, reward: MathAnswer = REWARD) -> float | None:
    return reward.score([sample(response, answer)])[0]


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        (r"\frac{1}{2}", r"\boxed{0.5}"),
        (r"\frac{1}{2}", r"\boxed{\dfrac12}"),
        (r"\frac{1}{2}", "so it is 1/2"),
        (r"$\frac{1}{2}$", "#### 1/2"),
        (r"We get $\boxed{\frac{1}{2}}$.", r"$$\boxed{\frac{2}{4}}$$"),
        ("0.5", r"\boxed{50\%}"),
        ("2x + 1", r"\boxed{1 + 2x}"),
        ("x^2 - 1", "#### $(x-1)(x+1)$"),
        ("5", r"\boxed{x = 5}"),
        (r"\{1, 2\}", r"\boxed{2, 1}"),
        (r"x \le 3", r"\boxed{(-\infty, 3]}"),
        (r"\text{Monday}", r"\boxed{Monday}"),
        ("3 + 4 = <<3+4=7>>7\n#### 7", r"\boxed{7}"),
        ("1,234", r"\boxed{1{,}234}"),
        ("10000", r"\boxed{10\,000}"),
        ("1234", "#### $1,234.00."),
        ("18", r"\boxed{18 dollars}"),
        ("18", r"\boxed{\$18}"),
        ("18", r"The answer is \$18."),
        ("18", "She spent $5 on pens and $13 on books, so $18 in total."),
        ("18", "Therefore, **18** apples remain."),
        ("-5", "\N{MINUS SIGN}5"),
    ],
)
def test_equal_answers_score_one(answer, response):
    assert score(response, answer) == 1.0


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}"),
        ("5", r"\boxed{-5}"),
        ("2x + 1", r"\boxed{2}"),
        ("5", r"\boxed{5, 6}"),
        ("5", r"It is 5, so \boxed{}"),
        ("18", r"\boxed{18x}"),
        ("5", "no idea"),
        ("5", ""),
    ],
)
def test_other_answers_score_zero(answer, response):
    assert score(response, answer) == 0.0


def test_the_last_closed_box_or_hash_is_the_answer_before_other_numbers():
    assert REWARD.extract(r"\boxed{1} \boxed{2} and 3 and 4") == "2"
    assert REWARD.extract(r"\boxed{1} \boxed{2} #### 3") == "3"
    assert REWARD.extract(r"\boxed{1} and \boxed{2 #### 3") == "1"
    assert REWARD.extract(r"\boxed{\text{not } \boxed{7}}") == "7"
    assert REWARD.extract(r"\boxed{\sqrt{\frac{x}{y}}}") == "sqrt(x/y)"
    assert REWARD.extract("#### 3 \n in 4 days") == "3"
    assert REWARD.extract("#### 1\n#### 2") == "2"
    assert REWARD.extract("after 3 days there are 4") == "4"


def test_equal_extracts_for_equal_numbers_make_votes_add_up():
    spellings = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", "#### .50", "it is 1/2", r"\boxed{x = \frac24}"]
    assert {REWARD.extract(response) for response in spellings} == {"1/2"}
    assert {REWARD.extract(response) for response in ("#### 1,234", r"\boxed{\$1234.0}")} == {"1234"}
    assert REWARD.extract("no idea") is None


@pytest.mark.parametrize("answer", ["", " \n", "####", r"\boxed{}", r"\frac{1", "?"])
def test_an_unreadable_gold_answer_makes_it_abstain(answer):
    assert score(r"\boxed{5}", answer) is None
    assert not REWARD.can_score(sample("", answer).prompt)


def test_only_the_end_of_a_response_is_read():
    reward = MathAnswer(max_chars=50)
    assert score(r"\boxed{5}" + " " * 30, "5", reward) == 1.0
    assert score(r"\boxed{5}" + " " * 50, "5", reward) == 0.0


@pytest.mark.parametrize("piece", ["so it is ", "\n", "x", "word, word. ", "ü", "2 + 3 = 5. "], ids=ascii)
def test_a_megabyte_of_text_scores_zero(piece):
    response = piece * (2**20 // len(piece))
    assert score(response, "42") == 0.0
    REWARD.extract(response)


LATEX = r"""
\boxed{ \frac{ \sqrt{ { } } } ( ) [ ] \{ \} 1 2 7 0 x \pi i = < \le \in \cup + - * / _ , . : % $ \$ | \left(
\right) & \\ \text{ \infty \log \pm \neq \lfloor #### \0 answer is 1,234 0.5
"""
"""Without powers and factorials, which could name a number that no memory holds."""


@given(st.lists(st.sampled_from(LATEX.split()), max_size=10))
@settings(max_examples=150)
def test_any_latex_gets_a_score_and_the_same_one_again(tokens):
    response = " ".join(tokens)
    first, second = ((score(response, "42"), REWARD.extract(response), score("5", response)) for _ in "12")
    assert first == second
    assert first[0] in (0.0, 1.0, None)


@given(st.text(max_size=200))
@settings(max_examples=100)
def test_any_text_gets_a_score(text):
    assert score(text, "42") in (0.0, 1.0)


def test_it_scores_off_the_main_thread_where_signals_do_not_work():
    results: list[float | None] = []
    samples = [sample(r"\boxed{\frac{34}{2}}", "17"), sample(r"\boxed{\frac{35}{2}}", "17")]
    thread = threading.Thread(target=lambda: results.extend(MathAnswer().score(samples)))
    thread.start()
    thread.join()
    assert results == [1.0, 0.0]


def test_a_math_verify_that_cannot_compare_is_refused_at_construction(monkeypatch):
    monkeypatch.setattr("math_verify.parse", lambda *_args, **_kwargs: [])
    for cached in (mathematics._parse, mathematics._equal):
        cached.cache_clear()
    with pytest.raises(RuntimeError, match=r"finds 1/2 unequal to 0\.5"):
        MathAnswer()
    for cached in (mathematics._parse, mathematics._equal):
        cached.cache_clear()


def test_without_math_verify_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.delitem(sys.modules, "grpo_pl.rewards.mathematics")
    monkeypatch.delattr("grpo_pl.rewards.mathematics")
    with pytest.raises(
        ModuleNotFoundError, match=r"^MathAnswer needs math-verify: pip install grpo_pl\[math\]$"
    ):
        MathAnswer()


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match=r"^max_chars=0: expected 1 or more"):
        MathAnswer(max_chars=0)


def test_sixty_four_answers_start_no_worker_anew():
    reward = MathAnswer(workers=Workers(timeout_s=60.0))
    samples = [sample(rf"{n} apples, so \boxed{{\frac{{{n}}}{{7}}}}", r"\frac{3}{7}") for n in range(65)]
    reward.score([samples.pop()] * 2)  # the workers are there from the second iteration on
    before = {worker.pid for worker in children_of(psutil.Process())}
    assert sum(reward.score(samples)) == 1.0
    assert {worker.pid for worker in children_of(psutil.Process())} <= before  # those of other tests may end


def test_it_survives_pickle():
    assert score("#### 5", "5", pickle.loads(pickle.dumps(REWARD))) == 1.0


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """The workers that are alive; one may end while it is looked at."""
    return [child for child in process.children() if child.status() != psutil.STATUS_ZOMBIE]


def test_an_opened_thought_that_does_not_end_answers_only_where_it_marks_an_answer() -> None:
    asked = Prompt(token_ids=[1], text="?", answer="72", opened="<think>\n")
    responses = ["So it is 72", "It is 72. </think>\nIt is 72.", "I try \\boxed{72}"]
    samples = [Sample(prompt=asked, response=r, response_tokens=9, truncated=False) for r in responses]
    assert MathAnswer().score(samples) == [0, 1, 1]
