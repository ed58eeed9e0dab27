"""Data for reward models, made from rollouts and a verifier."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Refused
from helpers.repository import ROOT

from grpo_pl.__main__ import main
from grpo_pl.commands.reward_data.making import make_pairs
from grpo_pl.rewards.base import Verifier
from grpo_pl.rewards.rules import LastNumber
from grpo_pl.types import Prompt, Sample

Make = Callable[..., Path]


class HasDigit(Verifier):
    """Right is what has a digit: a random model knows that too, now and then."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [float(self.extract(sample.response) is not None) for sample in samples]

    def extract(self, response: str) -> str | None:
        return "digit" if re.search("[0-9]", response) else None


@pytest.fixture(scope="module")
def make(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    def run(kind: str, *arguments: object) -> Path:
        out = tmp_path_factory.mktemp("data") / kind
        verifier = json.dumps({"*": None, "digit": {"class_path": f"{__name__}.HasDigit"}})
        config = ("--config", ROOT / "configs" / "tiny.yaml", "--pretrained", tiny_model)
        sampled = ("--data.sampling.max_tokens", 6, "--model.verifiers", verifier)
        said = [kind, out, "--prompts", 40, "--val-share", 0.25, *config, *sampled, *arguments]
        main(["reward-data", *map(str, said)])
        return out

    return run


def rows(folder: Path, *names: str) -> list[dict[str, Any]]:
    files = [folder / f"{name}.jsonl" for name in names or ("train", "val")]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def pairs(make: Make) -> Path:
    return make("pairs", "--pairs-per-prompt", 2)


@pytest.fixture(scope="module")
def steps(make: Make) -> Path:
    return make("steps", "--steps", "[a-z]+", "--continuations", 4)


def test_of_each_pair_one_is_right_and_one_is_wrong(pairs: Path) -> None:
    found = rows(pairs)
    assert len(found) > 20
    for row in found:
        assert re.search("[0-9]", row["chosen"])
        assert not re.search("[0-9]", row["rejected"])
    assert max(sum(row["prompt"] == other["prompt"] for other in found) for row in found) == 2


@pytest.mark.parametrize("kind", ["pairs", "steps"])
def test_no_held_out_prompt_is_trained_on(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    trained, held_out = ({row["prompt"] for row in rows(folder, name)} for name in ("train", "val"))
    assert not trained & held_out
    assert 0.05 < len(held_out) / (len(held_out) + len(trained)) < 0.5


def test_a_step_that_settles_the_answer_has_label_1_and_the_last_one_the_verifiers_word(steps: Path) -> None:
    found, undecided = rows(steps), []
    assert any(len(row["labels"]) > 1 for row in found)
    for row in found:
        assert len(row["completions"]) == len(row["labels"])
        for i, label in enumerate(row["labels"][:-1]):
            if re.search("[0-9]", "".join(row["completions"][: i + 1])):
                assert label == 1.0
            else:
                undecided.append(label)
        assert row["labels"][-1] == float(bool(re.search("[0-9]", "".join(row["completions"]))))
    assert {label * 4 % 1 for label in undecided} == {0.0}
    assert 0 < sum(undecided) / len(undecided) < 1, "from an open step the policy gets there now and then"


def test_responses_are_judged_once_and_the_same_command_makes_the_same_data(make: Make, steps: Path) -> None:
    found = rows(steps)
    texts = [(row["prompt"], "".join(row["completions"])) for row in found]
    assert len(set(texts)) == len(texts)
    assert rows(make("steps", "--steps", "[a-z]+", "--continuations", 4)) == found


def test_recorded_responses_are_verified_again(make: Make, tmp_path: Path) -> None:
    """By the config's verifier, whatever reward the run had."""
    record = {"prompt": "q", "answer": "", "response_tokens": 1, "truncated": False, "reward": 0.5}
    file = tmp_path / "samples.jsonl"
    texts = ["a", "7", "7", "b"]
    file.write_text("".join(json.dumps(record | {"response": text}) + "\n" for text in texts))
    found = rows(make("pairs", "--samples", file))
    assert sorted((row["chosen"], row["rejected"]) for row in found) == [("7", "a"), ("7", "b")]


def test_conversations_with_the_same_last_message_are_not_mixed_and_written_whole(
    make: Make, tmp_path: Path
) -> None:
    def line(topic: str, response: str) -> str:
        first, last = ({"role": "user", "content": text} for text in (topic, "go on"))
        turns = [first, {"role": "assistant", "content": "yes?"}, last]
        known = {"prompt": "go on", "messages": turns, "answer": "", "response_tokens": 1, "truncated": False}
        return json.dumps(known | {"response": response}) + "\n"

    file = tmp_path / "samples.jsonl"
    file.write_text(line("a", "a7") + line("a", "aa") + line("b", "b7") + line("b", "bb"))
    found = rows(make("pairs", "--samples", file))
    pairs = {(row["prompt"][0]["content"], row["chosen"], row["rejected"]) for row in found}
    assert pairs == {("a", "a7", "aa"), ("b", "b7", "bb")}
    assert all([turn["content"] for turn in row["prompt"]][1:] == ["yes?", "go on"] for row in found)


def test_an_unverifiable_response_is_in_no_pair() -> None:
    prompts = [Prompt(token_ids=[1], text=t, answer=a) for t, a in (("q", "5"), ("r", "none"))]
    samples = [
        Sample(prompt=prompt, response=text, response_tokens=1, truncated=False)
        for prompt in prompts
        for text in ("5", "6")
    ]
    found = make_pairs(samples, LastNumber(), 4)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in found] == [("q", "5", "6")]


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (
            "pairs",
            ("--samples", "nowhere.jsonl"),
            "reward-data: --samples=nowhere.jsonl is not a samples.jsonl",
        ),
        ("steps", ("--samples", "nowhere.jsonl"), "reward-data: --samples makes pairs"),
        (
            "steps",
            ("--data.environment", "GuessTheNumber", "--data.episodes.tokens", "100"),
            "data.environment plays episodes, and reward-data knows single answers alone: set it to null",
        ),
        ("pairs", ("--verifier", "other"), "reward-data: --verifier=other: model.verifiers has digit"),
        ("pairs", ("--prompts", "0"), "reward-data: --prompts=0: expected 1 or more"),
        ("pairs", ("--val-share", "1"), "reward-data: --val-share=1.0: expected 0 or more and less"),
        ("steps", ("--steps", "["), "reward-data: --steps='[': expected a regular"),
        ("pairs", ("--model.advantage", "LeastSquares"), "model.advantage: expected one of"),
        (
            "pairs",
            ("--data.sampling.max_tokens", "1", "--data.group_size", "1"),
            "reward-data: no prompt had",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(
    make: Make, kind: str, arguments: tuple[str, ...], sentence: str, refused: Refused
) -> None:
    assert sentence in refused(make, kind, *arguments)
