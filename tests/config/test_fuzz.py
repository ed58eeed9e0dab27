"""Anything at all for what reads files, answers and settings: no crash, no hang, and twice the same."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from helpers.commands import NO_TRACES
from helpers.repository import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.internal.cache import LRUCache
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from grpo_pl.__main__ import main
from grpo_pl.config.allowed import check_values
from grpo_pl.config.components import implementations
from grpo_pl.config.files import read_config
from grpo_pl.prompts.sources import JSONL
from grpo_pl.rewards.base import RewardError, RewardFunction, score_samples
from grpo_pl.rewards.group_length import GroupLength
from grpo_pl.rewards.numerals import ascii_numbers, last_number, lone_number
from grpo_pl.rewards.rules import (
    ExactMatch,
    Format,
    Function,
    LastNumber,
    LengthPenalty,
    SoftOverlong,
)
from grpo_pl.rewards.steps import StepPattern
from grpo_pl.types import Prompt, Sample, StepScore

SLOW = os.environ.get("GRPO_PL_FUZZ")
"""How many examples each test tries; a few dozen, always the same, where it is not set."""


def examples(count: int) -> settings:
    """So many examples, or as many as `GRPO_PL_FUZZ` says, then new ones each time."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    many = int(SLOW) if SLOW else count
    return settings(max_examples=many, derandomize=not SLOW, suppress_health_check=checks)


def whatever_is_imported() -> AbstractContextManager[Any]:
    """Draw nothing from the source of the modules imported so far: which these are, earlier tests decide."""
    return patch.multiple(providers, _get_local_constants=Constants, CONSTANTS_CACHE=LRUCache(1024))


@pytest.fixture(autouse=True, scope="module")
def always_the_same() -> Iterator[None]:
    with nullcontext() if SLOW else whatever_is_imported():
        yield


def attempt(call: Callable[[], Any], refusal: type[Exception] = ValueError) -> tuple[Any, str | None]:
    """What a call gives, or what it is refused with."""
    try:
        return call(), None
    except refusal as error:
        return None, str(error)


def is_sentence(text: str) -> bool:
    """Whether a message is one line of a length that one reads, without a trace of Python."""
    return "\n" not in text and len(text) < 2000 and not any(trace in text for trace in NO_TRACES)


# ------------------------------------------------------------------------------------------------------ files

ALPHABET = st.sampled_from(
    [*'{}[]":,\\ \n\r\t', "question", "answer", "null", "NaN", "1e999", "\x00", "é", "0"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ROW = st.fixed_dictionaries({"question": JSON}, optional={"answer": JSON, "x": JSON})
LINES = st.lists(ROW | JSON, max_size=5).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.lists(ALPHABET, max_size=40).map(lambda parts: "".join(parts).encode()),
    LINES,
    st.tuples(LINES, st.integers(0, 300)).map(lambda torn: torn[0][: torn[1]]),
)


def test_the_examples_are_the_same_whatever_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn() -> list[list[str]]:
        found: list[list[str]] = []

        @given(texts=st.lists(st.text(max_size=8), min_size=9))
        @settings(examples(50), derandomize=True)
        def collect(texts: list[str]) -> None:
            found.append(texts)

        with whatever_is_imported():
            collect()
        return found

    first = drawn()
    (tmp_path / "full_of_texts.py").write_text(f"TEXTS = {[f'text {i}' for i in range(1000)]}")
    monkeypatch.syspath_prepend(tmp_path)
    import full_of_texts  # noqa: F401

    assert drawn() == first


@given(content=CONTENT)
@example(content=b'{"question": "q", "answer": {"\\n": 1}}')
@examples(300)
def test_any_bytes_are_prompts_or_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)

    def read() -> list[Any]:
        source = JSONL(str(path))
        return [source[row] for row in range(len(source))]

    rows, refusal = attempt(read)
    assert repr((rows, refusal)) == repr(attempt(read))
    if refusal is None:
        assert all(row.text.strip() and isinstance(row.answer, str) for row in rows)
    else:
        assert str(path) in refusal
        assert is_sentence(refusal), refusal


@given(content=CONTENT | st.lists(st.sampled_from([*"&*!-?:,[]{}#|>%@`'\"\n \t~", "a", "1", "<<"])).map(
    lambda parts: "".join(parts).encode()))  # fmt: skip
@examples(200)
def test_any_bytes_are_settings_or_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    read, refusal = attempt(lambda: read_config(str(path)))
    if refusal is None:
        assert all(isinstance(key, str) for key in read)
    else:
        assert str(path) in refusal
        assert is_sentence(" ".join(refusal.split()))


# ---------------------------------------------------------------------------------------------------- answers

PIECES = [
    *(
        "1",
        "0",
        ",",
        ".",
        "-",
        "$",
        "\\",
        "{",
        "}",
        "(",
        ")",
        "%",
        "####",
        "\\boxed{",
        "<answer>",
        "</answer>",
    ),
    *(
        "\n",
        " ",
        "\x00",
        "\N{MINUS SIGN}",
        "\u0663",
        "\u202e",
        "e5",
        "inf",
        "nan",
        "Step 1",
        "=",
        "1{,}234",
        "é",
    ),
]
ANSWER = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
LONG = st.tuples(st.sampled_from(PIECES), st.integers(1, 20_000)).map(lambda twice: twice[0] * twice[1])


def length(**texts: Any) -> float:
    return float(len(texts["response"]))


TESTED_APART = {
    *("CodeTests", "Judge", "MathAnswer", "OutcomeRewardModel", "ProcessRewardModel", "WorkerFunction")
}
"""They need a worker, a server or a model."""
FOUND = {cls.__name__: cls for cls in implementations(RewardFunction)}
REWARDS: dict[str, Callable[[], RewardFunction]] = {
    **{name: FOUND[name] for name in sorted(FOUND.keys() - TESTED_APART)},
    "ExactMatch": lambda: ExactMatch(fold_case=True, fold_whitespace=True),
    "Format": lambda: Format(r"<answer>.*?</answer>", full_match=False),
    "GroupLength": lambda: GroupLength(LastNumber()),
    "LengthPenalty": lambda: LengthPenalty(max_tokens=7),
    "SoftOverlong": lambda: SoftOverlong(max_tokens=9, buffer_tokens=4),
    "StepPattern": lambda: StepPattern(r"=", steps=r"(?=Step [0-9])|\n+"),
    "Function": lambda: Function(length),
}
"""Every reward in a file of rewards/, those with arguments that make it likely to fail."""


def test_the_rewards_are_found_in_their_folder() -> None:
    assert FOUND.keys() >= TESTED_APART | {"LastNumber", "TaskScore", "Function"}


@given(text=ANSWER | LONG)
@examples(150)
def test_numbers_are_read_from_anything(text: str) -> None:
    for read in (last_number, lone_number):
        number = read(text)
        assert number == read(text)
        assert number is None or math.isfinite(float(number)) or len(number) > 300
    assert ascii_numbers(text).count("\N{MINUS SIGN}") == 0


@pytest.mark.parametrize("name", REWARDS)
@given(answers=st.lists(st.tuples(ANSWER, ANSWER | LONG, st.integers(0, 99)), min_size=1, max_size=3))
@examples(25)
def test_a_reward_gives_anything_a_finite_number_or_abstains(
    name: str, answers: list[tuple[str, str, int]]
) -> None:
    samples = [
        Sample(
            prompt=Prompt(token_ids=[1], text="q", answer=gold),
            response=said,
            response_tokens=n,
            truncated=False,
            turns=[StepScore(end=len(said), score=n / 2)],
            stop="done",
        )
        for gold, said, n in answers
    ]
    reward = REWARDS[name]()
    first, again = (score_samples({"mine": reward}, samples) for _ in range(2))
    assert first.by_name == again.by_name
    assert all(score is None or math.isfinite(score) for score in first.by_name["mine"])
    for sample in samples:
        assert reward.can_score(sample.prompt) in (True, False)


@given(value=JSON | st.complex_numbers() | st.binary(max_size=3))
@examples(60)
def test_whatever_a_function_returns_is_a_score_or_an_error_that_shows_the_sample(value: Any) -> None:
    sample = Sample(
        prompt=Prompt(token_ids=[1], text="What?", answer="4"),
        response="5",
        response_tokens=1,
        truncated=False,
    )
    rewards = {"mine": Function(lambda **_: value)}
    scored, refusal = attempt(lambda: score_samples(rewards, [sample]), RewardError)
    if refusal is None:
        assert scored.by_name["mine"] == [None if value is None else float(value)]
    else:
        assert "'mine'" in refusal
        assert "What?" in refusal


# --------------------------------------------------------------------------------------------------- settings

KEYS = [
    *("pretrained", "seed_everything", "job", "ckpt_path", "data.group_size", "data.seed"),
    *("data.long_prompts", "data.sampling.temperature", "data.sampling.max_tokens", "data.engine"),
    *("data.train", "data.format.system", "data.format.few_shot", "data.format.template_kwargs"),
    *("model.kl", "model.kl.coefficient", "model.rewards", "model.optimizer", "model.optimizer.lr"),
    *("model.loss.clip_high", "model.policy.dtype", "model.masks", "model.advantage.eps", "model.critic"),
    *("trainer.max_epochs", "trainer.devices", "trainer.precision", "trainer.strategy", "trainer.logger"),
    *("trainer.callbacks", "trainer.max_time", "checkpoint.every_n_epochs"),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10),
    st.sampled_from(
        ["KLInLoss", "os.system", "math.pi", "nan", "[", "{a: 1}", "- 1", "!!python/name:os.system "]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(
        st.sampled_from(["class_path", "init_args", "a"]), st.text("ab.", max_size=5), max_size=2
    ),
)


@given(key=st.sampled_from(KEYS), value=SCALARS, in_a_file=st.booleans())
@examples(30)
def test_any_value_of_any_key_parses_or_is_refused_in_one_sentence(
    key: str, value: Any, in_a_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ROOT
    words = ["fit", "--config", str(root / "configs" / "tiny.yaml"), "--print_config"]
    if in_a_file:
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(nested), encoding="utf-8")
        words += ["--config", str(tmp_path / "config.yaml")]
    else:
        words += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"]
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr()
    if end.value.code == 0:
        assert yaml.safe_load(said.out)
    else:
        assert end.value.code == 2
        assert said.err.startswith("grpo_pl: error: ")
        assert is_sentence(said.err.rstrip("\n")), said.err


@given(config=st.dictionaries(st.text(max_size=8), JSON, max_size=4))
@examples(100)
def test_any_values_are_let_through_or_refused_in_one_sentence(config: dict[str, Any]) -> None:
    _, refusal = attempt(lambda: check_values(config))
    assert refusal is None or is_sentence(" ".join(refusal.split()))


@pytest.mark.slow
def test_much_more_of_the_same() -> None:
    """Each of the above with a thousand examples that are new each time."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", __file__, "-k", "not much_more"],
        env=os.environ | {"GRPO_PL_FUZZ": "1000"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
