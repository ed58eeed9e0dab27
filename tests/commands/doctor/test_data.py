"""What doctor finds in the data: repeated prompts, and answers that verifiers do not read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.questions import write

from grpo_pl.commands.doctor.answers import check_answers
from grpo_pl.commands.doctor.findings import Finding
from grpo_pl.commands.doctor.prompts import check_prompts, shown
from grpo_pl.models.loading import load_tokenizer
from grpo_pl.prompts import JSONL, ChatFormat, PromptSet
from grpo_pl.rewards.base import RewardFunction, Verifier
from grpo_pl.rewards.math_answer import MathAnswer
from grpo_pl.rewards.rules import ExactMatch, Format, Function, LastNumber, WorkerFunction
from grpo_pl.types import Prompt, Sample

SUMS = [{"question": f"{n} + 1", "answer": f"{n + 1}"} for n in range(30)]


@pytest.fixture
def prompts(tiny_model: Path, tmp_path: Path) -> Any:
    """Makes the prompts of rows."""

    def read(
        *rows: dict[str, Any], key: str = "data.train", most: int = 100, template: str | None = None
    ) -> PromptSet:
        source = JSONL(write(tmp_path / f"{key}.jsonl", *rows))
        format = ChatFormat(template_kwargs={} if template is None else {"chat_template": template})
        tokenizer = load_tokenizer(str(tiny_model))
        return PromptSet(source, format, tokenizer, max_prompt_tokens=most, long_prompts="truncate", key=key)

    return read


class Pays(Verifier):
    """A verifier that pays what a function says, whatever the gold answer is."""

    def __init__(self, pay: Callable[[Sample], float]) -> None:
        super().__init__()
        self.pay = pay

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self.pay(sample) for sample in samples]

    def extract(self, response: str) -> str:
        return response


def found(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def examined(verifier: RewardFunction, tiny_model: Path, *golds: str) -> Finding:
    """What is found of a verifier of these gold answers."""
    asked = [Prompt(token_ids=[1], text="?", answer=gold) for gold in golds]
    [finding] = check_answers({"it": verifier}, asked, load_tokenizer(str(tiny_model)))
    return finding


def test_repeated_contradictory_and_long_prompts_are_counted(prompts: Any) -> None:
    again = [SUMS[3], {"question": "4 + 1", "answer": "6"}, {"question": "1 + " * 100, "answer": "0"}]
    checks = found(check_prompts({"data.train": prompts(*SUMS, *again)}, {2}))
    assert checks["data.train: repeats"].verdict == "warning"
    assert "2 of 33 prompts repeat another one; 1 have several answers" in checks["data.train: repeats"].found
    assert checks["data.train"].verdict == "warning"
    assert "1 were longer" in checks["data.train"].found
    clean = check_prompts({"data.train": prompts(*SUMS)}, {2})
    assert {finding.verdict for finding in clean} == {"ok"}


def test_a_prompt_in_both_sets_is_shown(prompts: Any) -> None:
    sets = {"data.train": prompts(*SUMS[:20]), "data.val": prompts(*SUMS[19:], key="data.val")}
    finding = found(check_prompts(sets, {2}))["train and val"]
    assert finding.verdict == "warning"
    assert "1 of 11 prompts of data.val are also in data.train (for instance '19 + 1')" in finding.found


def test_what_a_template_opens_is_said_and_an_end_before_the_response_is_warned_of(prompts: Any) -> None:
    thinks = prompts(*SUMS, template="{{ messages[0].content }}<|im_start|>assistant\n<think>\n")
    finding = found(check_prompts({"data.train": thinks}, {2}))["data.train: ends"]
    assert finding.verdict == "ok"
    assert "open '<think>' for the response" in finding.found
    ended = prompts(*SUMS, template="{{ messages[0].content }}<|im_end|>")
    finding = found(check_prompts({"data.train": ended}, {2}))["data.train: ends"]
    assert finding.verdict == "warning"
    assert "30 of 30 prompts of data.train end in '<|im_end|>'" in finding.found


def test_gold_answers_are_whole_responses_whatever_the_prompt_has_opened(tiny_model: Path) -> None:
    asked = [Prompt(token_ids=[1], text="?", answer=gold, opened="<think>\n") for gold in "345"]
    [finding] = check_answers({"it": MathAnswer()}, asked, load_tokenizer(str(tiny_model)))
    assert finding.verdict == "ok"


def test_twenty_prompts_are_shown_from_the_whole_set_as_the_model_reads_them(prompts: Any) -> None:
    pairs = shown(prompts(*SUMS))
    assert len(pairs) == 20
    assert pairs[0] == ("<|im_start|>user\n0 + 1<|im_end|>\n<|im_start|>assistant\n", "1")
    assert pairs[-1][1] == "29"


@pytest.mark.parametrize("verifier", [LastNumber(), ExactMatch(), MathAnswer()])
def test_a_verifier_that_tells_right_from_wrong_is_fine(verifier: Verifier, tiny_model: Path) -> None:
    finding = examined(verifier, tiny_model, "3", "4", "-17")
    assert finding.verdict == "ok"
    assert finding.numbers == {"right": 3, "paid": 3, "wrong_paid": 0}


def test_a_gold_answer_that_is_not_paid_1_is_a_problem(tiny_model: Path) -> None:
    finding = examined(Pays(lambda sample: float(sample.response == "2")), tiny_model, "1", "2")
    assert finding.verdict == "problem"
    assert "pays 1 for 1 of 2 gold answers" in finding.found
    assert "(0 for the gold answer '1')" in finding.found


def test_an_answer_that_the_verifier_cannot_read_is_a_warning(tiny_model: Path) -> None:
    finding = examined(LastNumber(), tiny_model, "3", "three", "4")
    assert finding.verdict == "warning"
    assert "it cannot read 1 more, for instance 'three'" in finding.found


def test_a_verifier_that_pays_for_a_single_wrong_answer_is_warned_of(tiny_model: Path) -> None:
    finding = examined(Pays(lambda s: float(s.response in (s.prompt.answer, "2"))), tiny_model, *"1234")
    assert finding.verdict == "warning"


def test_a_verifier_that_pays_for_wrong_answers_is_a_problem(tiny_model: Path) -> None:
    finding = examined(Pays(lambda _: 1.0), tiny_model, "1", "2")
    assert finding.verdict == "problem"
    assert "0 for 0 of 2 wrong ones (1 for '2', where '1' is right)" in finding.found


def test_a_verifier_that_fails_is_a_problem(tiny_model: Path) -> None:
    finding = examined(Pays(lambda _: 1 / 0), tiny_model, "1", "2")
    assert finding.verdict == "problem"
    assert "ZeroDivisionError" in finding.found


def test_what_compares_with_no_gold_answer_is_not_scored(tiny_model: Path) -> None:
    assert examined(Format(".*"), tiny_model, "1", "2").found == "Format compares with no gold answer"


def test_a_verifier_that_reads_no_gold_answer_is_a_problem(tiny_model: Path) -> None:
    for golds in (["", ""], ["A", "D"]):
        finding = examined(LastNumber(), tiny_model, *golds)
        assert finding.verdict == "problem"
        assert f"can read none of 2 gold answers, for instance '{golds[0]}'" in finding.found


def contained(**given: Any) -> float:
    return float(given["answer"] in given["response"])


def nothing(**_: Any) -> float:
    return 0.0


def fails(**given: Any) -> float:
    return float(given["no such column"])


@pytest.mark.parametrize(
    ("function", "verdict", "words"),
    [
        (contained, "ok", "pays 1 on average for 3 gold answers and 0 for 3 wrong ones"),
        (nothing, "warning", "pays 0 on average for 3 gold answers and 0 for 3 wrong ones"),
        (fails, "problem", "no such column"),
    ],
)
@pytest.mark.parametrize("kind", [Function, WorkerFunction])
def test_a_function_is_asked_too(
    kind: type[RewardFunction], function: Any, verdict: str, words: str, tiny_model: Path
) -> None:
    finding = examined(kind(function), tiny_model, "3", "4", "5")
    assert finding.verdict == verdict
    assert words in finding.found
