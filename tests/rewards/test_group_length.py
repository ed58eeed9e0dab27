"""The length reward of Kimi k1.5, by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from grpo_pl.rewards.base import Verifier, score_samples
from grpo_pl.rewards.group_length import GroupLength
from grpo_pl.rewards.rules import LastNumber
from grpo_pl.runs.layout import read_metrics
from grpo_pl.types import Prompt, Sample


def question(answer: str = "4", seed: int = 0) -> Prompt:
    return Prompt(token_ids=[1], text="2 + 2?", answer=answer, seed=seed)


def sample(prompt: Prompt, response: str, tokens: int) -> Sample:
    return Sample(prompt=prompt, response=response, response_tokens=tokens, truncated=False)


REWARD = GroupLength(LastNumber())


def test_right_answers_get_lambda_and_wrong_ones_no_more_than_0() -> None:
    prompt = question()
    rows = [("4", 10), ("4", 20), ("4", 30), ("5", 10), ("5", 20), ("5", 25), ("5", 30)]
    got = REWARD.score([sample(prompt, *row) for row in rows])
    assert got == [0.5, 0.0, -0.5, 0.0, 0.0, -0.25, -0.5]


def test_the_least_and_the_most_are_those_of_the_same_prompt_and_visit() -> None:
    first, again = question(seed=1), question(seed=2)
    rows = [(first, "4", 10), (again, "4", 100), (first, "4", 20), (again, "4", 300)]
    assert REWARD.score([sample(*row) for row in rows]) == [0.5, 0.5, -0.5, -0.5]


@pytest.mark.parametrize("lengths", [[7], [7, 7, 7]])
def test_a_group_of_one_length_gets_0(lengths: list[int]) -> None:
    assert REWARD.score([sample(question(), "4", n) for n in lengths]) == [0.0] * len(lengths)


def test_it_abstains_where_the_verifier_does_and_leaves_those_out_of_the_group() -> None:
    unreadable = question(answer="no number")
    assert not REWARD.can_score(unreadable)
    rows = [(question(), "4", 10), (unreadable, "4", 500), (question(), "4", 20)]
    assert REWARD.score([sample(*row) for row in rows]) == [0.5, None, -0.5]


def test_a_verifier_that_fails_on_one_response_costs_that_one_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Where it abstains on errors, the group is not scored response by response, each alone."""

    class Fragile(Verifier):
        def extract(self, response: str) -> str:
            return response

        def score(self, samples: Sequence[Sample]) -> list[float]:
            if any(one.response == "crash" for one in samples):
                raise RuntimeError("no")
            return [1.0 for _ in samples]

    reward = GroupLength(Fragile(on_error="abstain"), on_error="abstain")
    rows = [sample(question(), text, n) for text, n in (("4", 10), ("crash", 50), ("4", 20))]
    assert score_samples({"short": reward}, rows).by_name["short"] == [0.5, None, -0.5]
    assert "it abstains" in caplog.text


def test_a_run_logs_it_beside_the_other_rewards(fit: Callable[..., Path]) -> None:
    overlay = Path(__file__).parents[2] / "configs" / "ablations" / "group_length.yaml"
    folder = fit("--config", overlay, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
    row = read_metrics(folder / "metrics.csv")[1]
    assert -0.5 <= row["rewards/short"] <= 0.5
    assert row["rewards/short_abstained"] == 0
