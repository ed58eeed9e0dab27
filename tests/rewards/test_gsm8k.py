"""Real solutions of openai/gsm8k, split train: rows 1, 346, 645, 5,331 and 5,716, ends unchanged."""

import pytest

from grpo_pl.rewards.base import Verifier
from grpo_pl.rewards.math_answer import MathAnswer
from grpo_pl.rewards.rules import LastNumber
from grpo_pl.types import Prompt, Sample

SOLUTIONS = {
    "72": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    "1080": "This means that in 30 days he earns $36 * 30 = $<<36*30=1080>>1080.\n#### 1,080",
    "109200000": "13 weeks have 13 * 7 = <<13*7=91>>91 days.\n"
    "For 91 days the bus system carries 1,200,000 * 91 = <<1200000*91=109200000>>109,200,000 people.\n"
    "#### 109,200,000",
    "27200": "Taxes:40000(.20)=8000$\nHealthcare:40000(.10)=4000$\nDues:<<800=800>>800$\n"
    "Total:40000-8000-4000-800=<<40000-8000-4000-800=27200>>27,200$\n#### 27,200",
    "-7": "-14 + (-8) + 1 = <<-14+-8+1=-21>>-21 degrees Fahrenheit\n"
    "-21/3 = <<-21/3=-7>>-7 degrees Fahrenheit\nThe average temperature was -7 degrees Fahrenheit.\n#### -7",
}


@pytest.fixture(params=[LastNumber, MathAnswer])
def verifier(request) -> Verifier:
    if request.param is MathAnswer:
        pytest.importorskip("math_verify")
    return request.param()


def score(verifier: Verifier, response: str, answer: str) -> float | None:
    prompt = Prompt(token_ids=[1], text="question", answer=answer)
    return verifier.score([Sample(prompt=prompt, response=response, response_tokens=1, truncated=False)])[0]


@pytest.mark.parametrize("answer", SOLUTIONS)
def test_the_solution_of_a_person_scores_one_against_itself_and_against_its_number(verifier, answer):
    solution = SOLUTIONS[answer]
    assert verifier.can_score(Prompt(token_ids=[1], text="question", answer=solution))
    assert verifier.extract(solution) == answer
    assert score(verifier, solution, solution) == 1.0
    assert score(verifier, solution, answer) == 1.0


@pytest.mark.parametrize("answer", SOLUTIONS)
def test_the_ways_in_which_models_write_the_answer_agree(verifier, answer):
    number = int(answer)
    for spelling in (
        rf"\boxed{{{number:,}}}",
        f"The answer is {number}.",
        f"**{number:,}.00**",
        f"#### {number}",
    ):
        assert score(verifier, f"First 3 + 4 = 7.\n{spelling}", SOLUTIONS[answer]) == 1.0
        assert verifier.extract(spelling) == answer
    assert score(verifier, rf"\boxed{{{number + 1}}}", SOLUTIONS[answer]) == 0.0
    assert score(verifier, "I do not know.", SOLUTIONS[answer]) == 0.0
