"""Problems that are made: splits, order, and answers."""

import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from typing import Any

import numpy as np
import psutil
import pytest
import reasoning_gym
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import DATASETS

from grpo_pl.prompts import Arithmetic, ReasoningGym
from grpo_pl.system.refusal import ArgumentError


@pytest.mark.parametrize("operators", ["+", "+-", "*"])
@pytest.mark.parametrize("digits", [1, 2])
def test_arithmetic_splits_are_disjoint_and_cover_every_problem(digits: int, operators: str) -> None:
    options: dict[str, Any] = {"digits": digits, "operators": operators, "held_out": 20}
    val = {row.text for row in Arithmetic(split="val", **options)}
    numbers = 9 * 10 ** (digits - 1)
    everything = len(operators) * numbers * (numbers + 1) // 2
    train = Arithmetic(split="train", size=everything - 20, **options)
    seen = {row.text for row in train}
    assert len(val) == 20
    assert len(seen) == len(train) == everything - 20
    assert not val & seen


def test_no_held_out_sum_is_trained_on_the_other_way_round() -> None:
    def problem(text: str) -> tuple[str, frozenset[str]]:
        a, operator, b = text.split()
        return operator, frozenset((a, b))

    options: dict[str, Any] = {"operators": "+*", "template": "{a} {operator} {b}"}
    val = {problem(row.text) for row in Arithmetic(split="val", **options)}
    train = {problem(row.text) for row in Arithmetic(split="train", **options)}
    assert len(val) == 200
    assert len(train) == 2 * 4095 - 200
    assert not val & train


def test_both_orders_of_the_operands_occur() -> None:
    pairs = [row.text.split() for row in Arithmetic(template="{a} {operator} {b}")]
    larger_first = sum(int(a) > int(b) for a, _, b in pairs)
    assert 0.4 < larger_first / len(pairs) < 0.6


def test_arithmetic_asks_the_standard_question_with_the_right_answer() -> None:
    for row in Arithmetic(digits=2, operators="+-*", size=500):
        head, a, operator, b = row.text.removesuffix("? Reply with just the number.").rsplit(maxsplit=3)
        assert head == "What is"
        assert 10 <= int(a) <= 99
        assert 10 <= int(b) <= 99
        assert int(row.answer) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operator]


def test_a_larger_arithmetic_set_only_adds_rows_and_another_seed_changes_them() -> None:
    small, large = Arithmetic(size=50), Arithmetic(size=3000)
    assert list(small) == [large[i] for i in range(50)]
    assert list(small) == list(Arithmetic(size=50))
    assert list(small) != list(Arithmetic(size=50, seed=1))


def test_many_digits_are_sampled_without_listing_all_pairs() -> None:
    train, val = Arithmetic(digits=12), Arithmetic(digits=12, split="val", template="{a}{operator}{b}")
    assert (len(train), len(val)) == (10_000, 200)
    assert len({row.text for row in train}) == 10_000
    assert all(len(row.text) == 25 for row in val)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits": 0}, "digits=0: expected 1 to 18"),
        ({"operators": "/"}, "operators='/': expected some"),
        ({"operators": ""}, "operators='': expected some"),
        ({"operators": "++"}, r"operators='\+\+': .* each once"),
        ({"held_out": 0}, "held_out=0: expected 1 or more and less than 4095"),
        ({"digits": 1, "held_out": 45}, "held_out=45: expected 1 or more and less than 45,"),
        ({"size": 3896}, "size=3896: expected 1 or more and at most 3895, all of split 'train'"),
        ({"size": 201, "split": "val"}, "size=201: expected 1 or more and at most 200, all of split 'val'"),
        ({"size": 0}, "size=0: expected 1 or more"),
        ({"template": "{a} + {b}"}, r"template='\{a\} \+ \{b\}': expected \{operator\} in it"),
    ],
)
def test_arithmetic_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Arithmetic(**options)


def test_reasoning_gym_entries_are_scored_by_their_own_verifier() -> None:
    rows = list(ReasoningGym("leg_counting", size=5, config={"min_animals": 2, "max_animals": 3}))
    assert len(rows) == 5
    for row in pickle.loads(pickle.dumps(rows)):
        task, config, entry = (row.metadata[key] for key in ("task", "config", "entry"))
        assert 2 <= entry["metadata"]["num_animals"] <= 3
        verifier = reasoning_gym.create_dataset(task, **config)
        assert verifier.score_answer(row.answer, entry) == 1.0
        assert verifier.score_answer("no idea", entry) < 1.0


def test_making_reasoning_gym_rows_leaves_the_global_generator_alone() -> None:
    np.random.seed(7)
    expected = np.random.get_state()[1].tolist()
    assert len(list(ReasoningGym("pool_matrix", size=3))) == 3
    assert np.random.get_state()[1].tolist() == expected


def test_a_config_that_makes_no_rows_is_refused_in_one_sentence() -> None:
    source = ReasoningGym("spell_backward", config={"min_word_len": 40, "max_word_len": 50})
    with pytest.raises(
        ArgumentError, match=r"^task=spell_backward: .*\(exit code 1: IndexError: .*\); change"
    ):
        source[0]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_the_process_that_makes_rows_ends_with_this_one(end: signal.Signals) -> None:
    program = "from grpo_pl.prompts.task_rows import make_rows; make_rows('knight_swap', {}, 10**6, 0)"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as parent:
        makers: list[psutil.Process] = []
        for _ in range(600):
            if makers := psutil.Process(parent.pid).children():
                break
            time.sleep(0.1)
        parent.send_signal(end)
    assert makers
    assert psutil.wait_procs(makers, timeout=30)[1] == []


def test_reasoning_gym_rows_depend_on_the_seed_alone() -> None:
    texts = {seed: [row.text for row in ReasoningGym("chain_sum", size=30, seed=seed)] for seed in (0, 1)}
    assert texts[0] == [row.text for row in ReasoningGym("chain_sum", size=30, seed=0)]
    assert not set(texts[0]) & set(texts[1])


@pytest.mark.parametrize("task", ["graph_color", "rubiks_cube", "propositional_logic"])
def test_a_reasoning_gym_task_with_many_right_answers_names_one(task: str) -> None:
    row = ReasoningGym(task, size=1)[0]
    assert row.metadata["entry"]["answer"] is None
    assert reasoning_gym.create_dataset(task).score_answer(row.answer, row.metadata["entry"]) == 1.0


@pytest.mark.parametrize("task", ["boxnet", "rush_hour"])
def test_a_reasoning_gym_task_without_any_known_answer_has_an_empty_one(task: str) -> None:
    assert ReasoningGym(task, size=1)[0].answer == ""


COUNTING = (
    "change config: leg_counting takes min_animals=3, max_animals=10, min_instances=1, max_instances=15"
)


@pytest.mark.parametrize(
    ("task", "config", "message"),
    [
        ("leg_counting", {"min_animals": 0}, f"min_animals must be positive .*; {COUNTING}$"),
        ("leg_counting", {"min_animals": "a"}, f"'>' not supported .*; {COUNTING}$"),
        ("calendar_arithmetic", {"tasks": [1]}, "'int' object has no .*; change config: .* tasks="),
        ("spell_backward", {"data_file": "a"}, ".*No such file .*; change config: .* data_file='"),
        ("count_primes", {"max_n": 10**30}, "cannot fit 'int' .*; change config: .* max_n=10000"),
        (
            "gsm_symbolic",
            {"difficulty": 2.0},
            "reasoning-gym refuses it .* gsm_symbolic takes difficulty=1.0",
        ),
        ("number_sequence", {"max_complexity": 0}, "reasoning-gym refuses it .* max_complexity=3"),
        (
            "composite",
            {"datasets": [{"name": "spell_backward", "config": {"data_file": "a"}}]},
            ".*No such file .*; change config: spell_backward takes",
        ),
        ("composite", {"datasets": 5}, r".* takes \{datasets: \[\{name: leg_counting, "),
        ("composite", {"datasets": [{"name": ["a"]}]}, r".* takes \{datasets: \[\{name: leg_counting, "),
    ],
)
def test_a_config_that_the_library_refuses_gets_its_reason_and_the_options(
    task: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=rf"^config={re.escape(str(config))}: {message}"):
        ReasoningGym(task, config=config)


@pytest.mark.parametrize("task", sorted(DATASETS))
def test_the_options_of_every_task_can_be_listed(task: str) -> None:
    names = [field.name for field in fields(DATASETS[task][1]) if field.name not in ("size", "seed")]
    options = "datasets" if task == "composite" else "=.*".join(names) or "no options"
    with pytest.raises(
        ArgumentError, match=rf"no_such_option.*; change config: {task} takes .*\b{options}\b"
    ):
        ReasoningGym(task, config={"no_such_option": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "leg_countin"}, "task=leg_countin: .* no such task; it has, for instance, leg_counting"),
        ({"task": "leg_counting", "size": 0}, "size=0: expected 1 or more"),
        ({"task": "leg_counting", "config": {"legs": 2}}, "config={'legs': 2}: .*'legs'"),
        ({"task": "leg_counting", "config": {"min_animals": 0}}, "config={'min_animals': 0}: "),
        ({"task": "composite"}, "config={}: Must specify at least one dataset"),
        ({"task": "composite", "config": {"datasets": ["leg_counting"]}}, "config={'datasets': "),
        (
            {
                "task": "composite",
                "config": {
                    "datasets": [{"name": "composite", "config": {"datasets": [DatasetSpec("ab", 1, {})]}}]
                },
            },
            "config=.* a composite task cannot be a part; name its tasks",
        ),
        (
            {"task": "composite", "config": {"datasets": [{"name": "leg_countin"}]}},
            "config=.*'leg_countin' not",
        ),
        (
            {"task": "leg_counting", "config": {"size": 3}},
            "config=.*: set size beside task instead",
        ),
    ],
)
def test_reasoning_gym_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ReasoningGym(**options)
