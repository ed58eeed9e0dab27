"""All tasks of reasoning-gym: verdicts on right answers, on none, on wrong ones and on nonsense."""

import os
import pickle
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from reasoning_gym.factory import DATASETS

from grpo_pl.prompts import Question, ReasoningGym
from grpo_pl.rewards.base import score_samples
from grpo_pl.rewards.task_answers import meaning
from grpo_pl.rewards.tasks import TaskScore
from grpo_pl.system.refusal import ArgumentError, ConfigError
from grpo_pl.training.checks.prompts import check_answers
from grpo_pl.types import Prompt, Sample

REFUSED = {"codeio"}
TASKS = sorted(DATASETS.keys() - REFUSED - {"composite"})
EVERY_TASK: dict[str, Any] = {
    "task": "composite",
    "size": 320,
    "seed": 22,
    "config": {"datasets": [{"name": name} for name in TASKS]},
}
"""Rows of all tasks, made in one process."""
SEVERAL_RIGHT = {"boxnet", "graph_color", "n_queens", "propositional_logic", "puzzle24", "rush_hour"}
"""Tasks where another row's answer may be right."""
NOTHING = ("", "   ", "\n\n", "<answer> </answer>", "<think>I give up.</think>")
NONSENSE = (
    "xyzzy",
    "I do not know",
    "**",
    "nan",
    "inf",
    "-inf + nanj",
    "null",
    "{}",
    '{"a": [1, {"b": null}]}',
    "[[[]]]",
    "[1, [2], 'three', {}]",
    '"',
    "(((",
    "1/0",
    "9" * 80,
    "-1e400",
    "٣٣٣٣٣٣٣",
    "\N{FULLWIDTH DIGIT SEVEN}³",
    "\\frac{x}{",
    "\N{OGHAM SPACE MARK}\u200b",
    "x.real",
    "name=value, other=",
    "move(box, (9.5, 9.5))",
    "word " * 120,
    "?!#%&~^|\\",
)


def sample(row: Question, response: str) -> Sample:
    prompt = Prompt(token_ids=[1], text=row.text, answer=row.answer, metadata=row.metadata)
    return Sample(prompt=prompt, response=response, response_tokens=1, truncated=False)


def scores(row: Question, responses: Sequence[str], **options: Any) -> list[float | None]:
    return TaskScore(**options).score([sample(row, response) for response in responses])


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[list[Question]]:
    """Rows of all tasks from two processes: with hash seeds of their own, and on different days."""
    program = "import pickle, sys; from grpo_pl.prompts import ReasoningGym; "
    program += f"pickle.dump(list(ReasoningGym(**{EVERY_TASK!r})), open(sys.argv[1], 'wb'))"
    folder = tmp_path_factory.mktemp("rows")
    surroundings = {"1": "Pacific/Kiritimati", "2": "Etc/GMT+12"}  # 26 hours apart
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, folder / hash_seed],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "TZ": zone},
        )
        for hash_seed, zone in surroundings.items()
    ]
    assert [process.wait() for process in processes] == [0, 0]
    return [pickle.loads((folder / hash_seed).read_bytes()) for hash_seed in surroundings]


@pytest.fixture(scope="module")
def rows(in_two_processes: list[list[Question]]) -> dict[str, list[Question]]:
    """Up to three rows of each task."""
    by_task = defaultdict(list)
    for row in in_two_processes[0]:
        by_task[row.metadata["entry"]["metadata"]["source_dataset"]].append(row)
    assert sorted(by_task) == TASKS, "take a seed or size of EVERY_TASK that reaches every task"
    return {task: rows[:3] for task, rows in by_task.items()}


def test_rows_are_the_same_in_every_process(in_two_processes: list[list[Question]]) -> None:
    for one, other in zip(*in_two_processes, strict=True):
        assert one == other


def right_answers(gold: str) -> list[str]:
    spellings = [
        gold,
        f"\n {gold} \n",
        f"<think>It is <answer>7 or 8</answer>.</think><answer>\n{gold}\n</answer>",
        f"Put it into <answer> tags: <answer>{gold}",
        f"<think>Hm.</think>\n{gold}",
        f"**{gold}**",
        f"```\n{gold}\n```",
    ]
    return [*spellings, f"{gold}.0", f"{gold}.", f"+{gold}"] if gold.isdecimal() else spellings


@pytest.mark.parametrize("task", TASKS)
def test_a_task_pays_1_for_its_right_answers_alone(task: str, rows: dict[str, list[Question]]) -> None:
    for row, other in zip(rows[task], [*rows[task][1:], rows[task][0]], strict=True):
        if row.answer:
            right = right_answers(row.answer)
            assert dict(zip(right, scores(row, right), strict=True)) == dict.fromkeys(right, 1.0)
        without = [*NOTHING, *NONSENSE]
        assert dict(zip(without, scores(row, without), strict=True)) == dict.fromkeys(without, 0.0)
        if task not in SEVERAL_RIGHT and meaning(other.answer) != meaning(row.answer):
            assert scores(row, [other.answer]) == [0.0]


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"boxnet", "rush_hour"}))
def test_the_right_answer_and_more_is_no_right_answer(task: str, rows: dict[str, list[Question]]) -> None:
    for row, other in zip(rows[task], [*rows[task][1:], rows[task][0]], strict=True):
        gold = row.answer
        after = [
            " or 5",
            " maybe",
            " No: the opposite.",
            r" or $\frac{1}{2}$",
            ", xyz",
            " # 5",
            "!",
            " (or not)",
        ]
        more = [*(gold + text for text in after), f"not {gold}", f"{gold}, {other.answer}"]
        if task != "sokoban":  # after the last push any moves may follow
            more += [f"{gold} {other.answer}", f"{gold}\n{other.answer}"]
        assert dict(zip(more, scores(row, more), strict=True)) == dict.fromkeys(more, 0.0)


@pytest.mark.parametrize(
    ("task", "answer"),
    [("syllogism", "Yes"), ("zebra_puzzles", "bob"), ("game_of_life_halting", "True"), ("bf", "angry")],
)
def test_a_full_stop_after_the_last_word_is_no_other_answer(task: str, answer: str) -> None:
    right = [f"{answer}.", f"**{answer}.**", f"**{answer}**.", f"<answer>{answer}.</answer>"]
    assert scores(entry(task, answer), right) == [1.0] * len(right)
    assert scores(entry(task, f"{answer}."), [answer]) == [1.0]
    wrong = [f"{answer}. Or not.", f"not {answer}.", f"{answer}?"]
    assert scores(entry(task, answer), wrong) == [0.0] * len(wrong)


def test_the_largest_number_may_be_spelled_as_the_question_does() -> None:
    for row in ReasoningGym("number_format", size=60):
        candidates = row.text.partition("candidates: ")[2].split()
        assert sum(score == 1.0 for score in scores(row, candidates)) == 1


def test_scoring_changes_nothing_and_says_the_same_again(rows: dict[str, list[Question]]) -> None:
    for task in ("knight_swap", "boxnet", "rush_hour"):
        row = rows[task][0]
        before = pickle.dumps(row)
        responses = [row.answer, "[]", "F+1 K+1"]
        assert scores(row, responses) == scores(row, responses)
        assert pickle.dumps(row) == before


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("prime_factorization", "2 x three"),
        ("prime_factorization", "²"),
        ("boxnet", '"move"'),
        ("boxnet", "7"),
    ],
)
def test_a_verifier_that_raises_gives_0_and_is_counted(
    task: str, answer: str, rows: dict[str, list[Question]]
) -> None:
    row = rows[task][0]
    scored = score_samples({"task": TaskScore()}, [sample(row, answer), sample(row, row.answer or "[]")])
    assert scored.by_name["task"] == [0.0, float(bool(row.answer))]
    assert scored.failures["task"] == {"timeouts": 0, "crashes": 0, "errors": 1}


def test_prompts_are_refused_whose_verifier_does_not_take_the_gold_answer(
    rows: dict[str, list[Question]],
) -> None:
    row = rows["basic_arithmetic"][0]
    prompt = sample(row, "").prompt
    assert TaskScore().can_score(prompt)
    assert not TaskScore().can_score(replace(prompt, answer="eleven?"))
    raises_on_all = replace(prompt, metadata=prompt.metadata | {"config": {"no_such": 1}})
    with pytest.raises(ConfigError, match=r"model\.rewards\.task: TaskScore can read none of the answers of"):
        check_answers("model.rewards", {"task": TaskScore()}, "data.train", [raises_on_all])


def entry(task: str, answer: str, **metadata: Any) -> Question:
    """A row of a task whose verifier reads these metadata."""
    metadata["source_dataset"] = task
    made = {"question": "?", "answer": answer, "metadata": metadata}
    return Question(text="?", answer=answer, metadata={"task": task, "config": {}, "entry": made})


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        (entry("basic_arithmetic", "12"), ["12.0", "012", "+12", "**12**"], ["120", "2", "-12", "12 or 13"]),
        (
            entry("basic_arithmetic", "-1200"),
            ["-1,200", "\N{MINUS SIGN}1200.00"],
            ["1200", "-12,00", "-1 200"],
        ),
        (
            entry("coin_flip", "3.05e-05", rational={"numerator": 1, "denominator": 2**15}),
            ["1/32768"],
            ["0", "nan"],
        ),
        (
            entry("complex_arithmetic", "1.0 + 2.0i", result=(1.0, 2.0)),
            ["(1+2j)"],
            ["nan", "1 + nanj", "2 + 1i"],
        ),
        (
            entry("countdown", "2*3 + 4", numbers=[2, 3, 4], target=10),
            ["4 + 3*2", "4 + 2 \N{MULTIPLICATION SIGN} 3", "`(2*3) + 4`"],
            ["10", "2*3 + 4 = 10", "3*4 - 3", "10 # 2 3 4", "2**3 + 4", "2.3 + 4 + 3.7", "4 + 6", "(2*3 + 4"],
        ),
        (entry("game_of_life_halting", "False"), ["false", "`False`"], ["True", "no", "0", "either"]),
        (entry("game_of_life_halting", "True"), ["true"], ["False", "yes", "1", "it halts"]),
        (
            entry("game_of_life", "[[0,1],[1,0]]"),
            ["[[0, 1], [1, 0]]", "0 1\n1 0"],
            ["[[0,1],[1,0],[0,0]]", "[[0,1]]"],
        ),
        (
            entry("gsm_symbolic", "5"),
            ["5", "$5.00", "So 2 + 3 = 5", "The answer is 5."],
            ["-5", "15", "5 or 6", "6 or 5", "not 5"],
        ),
        (
            entry("decimal_arithmetic", "12.621"),
            ["12.621", "12.6210", "1.2621e1"],
            ["12.62", "12.622", "nan"],
        ),
        (
            entry("number_format", "861083825.87", solution=861083825.87),
            ["861,083,825.87", "861083825.870000", "8.610838258700000e+08"],
            ["861083825.88", "861083825.871", "861083825"],
        ),
        (
            entry("fraction_simplification", "$1/3$", simplified_numerator=1, simplified_denominator=3),
            ["1/3", "1 / 3", r"$\dfrac{1}{3}$", r"\frac{1}{3}"],
            [r"\frac{1}{3} or 1/2", "1/3 or 1/2", "2/6"],
        ),
        (
            entry("knights_knaves", "Ann is a knight, and Bob is a knave."),
            [
                "Bob is a knave and Ann is a knight",
                "ann is a knight. bob is a knave",
                "Ann is a knight\nBob is a knave",
            ],
            ["Ann is a knight", "Ann is a knight, Bob is a knave, Bob is a knight", "Ann is not a knight"],
        ),
        (entry("word_sorting", "a, b", sorted_words=["a", "b"]), ["a,b"], ["a, b, a", "b, a"]),
        (
            entry("pool_matrix", "100.0 3.3333333333333335"),
            ["100 3.33", "100.00 3.33"],
            ["100.5 3.33", "100 3.3", "100 3.33 # 5"],
        ),
        (
            entry("time_intervals", "54 days", task_type="date"),
            ["54", "54 days."],
            ["54 or 55 days", "54 days, 1:00"],
        ),
        (
            entry("advanced_geometry", "(1.500, 2.000)", task_type="orthocenter", ortho=("3/2", "2")),
            ["(1.5, 2)", "1.5, 2.0"],
            ["(1.5, 2), 5", "(1.5, 2) or (3, 4)"],
        ),
        (
            entry("n_queens", "Q _\n_ _", valid_answers=["Q _\n_ _", "_ _\n_ Q"]),
            ["[['_', '_'], ['_', 'Q']]", "_ _ \n_ Q\n"],
            ["_ Q\n_ _", "Q _ _ _", "print('Q _')"],
        ),
        (
            entry("number_sorting", "['-3', '4.50', '5.25']"),
            ['["-3", "4.50", "5.25"]', "[-3, 4.5, 5.25]"],
            ["['-2.5', '4.50', '5.25']", "['5.25', '4.50', '-3']", "[-3, 4.5]"],
        ),
        (
            entry("polynomial_equations", "-1.2345, 2.0", real_solutions=[-1.23449, 2.0]),
            ["2, -1.2345", "-1.23449, 2.0000"],
            ["2.0", "-1.2345, 2.0, 2.0", "-1.24, 2.0", "nan, nan", "no"],
        ),
        (
            entry("polynomial_equations", '""', real_solutions=[]),
            ['""', "<answer></answer>"],
            ["none", "0", ""],
        ),
        (
            entry("prime_factorization", "2 \N{MULTIPLICATION SIGN} 2 \N{MULTIPLICATION SIGN} 3"),
            ["3\N{MULTIPLICATION SIGN}2\N{MULTIPLICATION SIGN}2", "2 * 2 * 3"],
            ["12", "4\N{MULTIPLICATION SIGN}3", "2\N{MULTIPLICATION SIGN}2", "two"],
        ),
        (
            entry("puzzle24", "5*6*1 - 6", numbers=[5, 6, 1, 6]),
            ["(5*6 - 6)/1"],
            ["6*4*1*1", "24", "5*6 - 6", "5*5*1 - 1", "(6*6 + 5 - 1)*0.6"],
        ),
        (entry("spiral_matrix", "1 2 3 4"), ["[1, 2, 3, 4]", "1 2  3 4"], ["1 2 4 3", "1234", "range(1, 5)"]),
    ],
    ids=lambda value: value.metadata["task"] if isinstance(value, Question) else None,
)
def test_right_in_another_spelling_is_right_and_what_the_library_is_lax_on_is_wrong(
    row: Question, right: list[str], wrong: list[str]
) -> None:
    assert dict(zip(right, scores(row, right), strict=True)) == dict.fromkeys(right, 1.0)
    assert dict(zip(wrong, scores(row, wrong), strict=True)) == dict.fromkeys(wrong, 0.0)


@pytest.mark.parametrize(
    ("row", "answer", "expected"),
    [
        (entry("spell_backward", "olleh"), "ollxx", 0.6),
        (entry("shortest_path", "up", matrix=[["#", "O"], ["*", "O"]]), "right up left", 0.5),
        (entry("basic_arithmetic", "1"), "12", 0.0),
        (entry("tsumego", "C4"), "D5", 0.0),
        (entry("tsumego", "C4"), "nowhere", 0.0),
    ],
)
def test_partial_credit_is_for_what_is_partly_right(row: Question, answer: str, expected: float) -> None:
    assert scores(row, [answer]) == [0.0]
    assert scores(row, [answer], partial_credit=True) == [pytest.approx(expected)]


def test_partial_credit_is_below_1_for_all_wrong_answers_and_0_for_none(
    rows: dict[str, list[Question]],
) -> None:
    reward = TaskScore(partial_credit=True)
    for task in TASKS:
        row = rows[task][0]
        paid = reward.score([sample(row, response) for response in (*NONSENSE, *NOTHING)])
        assert all(score is not None and 0.0 <= score < 1.0 for score in paid)
        assert paid[len(NONSENSE) :] == [0.0] * len(NOTHING)


@pytest.mark.parametrize("task", ["codeio", "composite"])
def test_a_task_that_cannot_be_made_again_is_refused_with_the_reason(task: str) -> None:
    config = {"datasets": [{"name": "codeio"}]} if task == "composite" else None
    with pytest.raises(
        ArgumentError, match=r"^task=codeio: .* something else each time .*; choose another task$"
    ):
        ReasoningGym(task, size=3, config=config)


def test_other_prompts_are_left_unscored() -> None:
    assert scores(Question(text="1 + 2", answer="3"), ["3"]) == [None]
    assert not TaskScore().can_score(Prompt(token_ids=[1], text="1 + 2", answer="3"))


def test_equal_numbers_are_one_answer_for_majority_voting() -> None:
    spellings = ["<answer>12.0</answer>", "12", "<think>13?</think> 12", "<answer>12"]
    assert {TaskScore().extract(response) for response in spellings} == {"12"}
    assert TaskScore().extract("<think>Hm.</think> ") is None
