"""Steps of a response, the rule that scores them, and the tokens that they are paid at."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.exact import few
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.models.loading import load_tokenizer
from grpo_pl.rewards.base import earning_tokens, score_samples, token_rewards
from grpo_pl.rewards.rules import ExactMatch, LengthPenalty
from grpo_pl.rewards.steps import StepPattern, step_ends
from grpo_pl.rollout.assembly import token_ends
from grpo_pl.runs.layout import read_metrics
from grpo_pl.types import Prompt, Sample, StepScore

LINES = re.compile(r"\n+")
TEXTS = st.text(st.sampled_from("ab =7.\n\té€漢🙂"), min_size=1, max_size=30)


def sample(response: str, ends: list[int] | None = None) -> Sample:
    prompt = Prompt(token_ids=[1], text="?", answer="")
    tokens = len(response) if ends is None else len(ends)
    ends = list(range(1, tokens + 1)) if ends is None else ends
    return Sample(prompt=prompt, response=response, response_tokens=tokens, truncated=False, token_ends=ends)


@pytest.mark.parametrize(
    ("response", "ends"),
    [
        ("", []),
        (" \n\n ", []),
        ("one", [3]),
        ("a\nb", [2, 3]),
        ("a\n\n\nb\n", [4, 6]),
        ("\na\n\nb", [4, 5]),
        ("a\n \nb", [2, 5]),
        ("a\n  ", [2]),
    ],
)
def test_step_ends_by_hand(response: str, ends: list[int]) -> None:
    assert step_ends(response, LINES) == ends


def test_an_empty_match_splits_too() -> None:
    assert step_ends("Step 1: a Step 2: b", re.compile(r"(?=Step [0-9])")) == [10, 19]


@few
@given(TEXTS)
def test_steps_are_the_response_cut_into_pieces_with_text(response: str) -> None:
    ends = step_ends(response, LINES)
    pieces = [response[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert all(piece.strip() for piece in pieces)
    assert not response[sum(map(len, pieces)) :].strip()
    assert [p.strip() for p in pieces] == [line.strip() for line in response.split("\n") if line.strip()]


def test_step_pattern_counts_the_steps_that_match() -> None:
    reward = StepPattern("=")
    assert reward.score_steps([sample("2 + 3\n= 5\nso 5 = 5")]) == [
        [StepScore(6, 0.0), StepScore(10, 1.0), StepScore(18, 1.0)]
    ]
    assert reward.score([sample("2 + 3\n= 5\nso 5 = 5"), sample("")]) == [2.0, 0.0]
    assert StepPattern("^b$").score([sample("a\nb\nab")]) == [1.0]


@pytest.mark.parametrize("key", ["pattern", "steps"])
def test_what_is_no_regular_expression_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}='\(': expected a regular expression"):
        StepPattern(**({"pattern": "a"} | {key: "("}))


# ------------------------------------------------------------------------------------------ steps to tokens


def test_steps_are_paid_where_they_end_and_outcomes_at_the_last_token_by_hand() -> None:
    """Tokens "x=", "1\n", "y", "" (the end token): steps end in the second and in the third."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    samples = [sample("x=1\ny", [2, 4, 5, 5]), sample("=", [1, 1])]
    rewards = {"steps": StepPattern("=", weight=2.0), "short": LengthPenalty(8)}
    scored = score_samples(rewards, samples)
    assert scored.total.tolist() == [1.5, 1.75]
    paid, ends = token_rewards(scored, samples, mask)
    assert paid.tolist() == [[0, 0, 0, 2, 0, -0.5, 0], [0, 2, -0.25, 0, 0, 0, 0]]
    assert ends.nonzero().tolist() == [[0, 3], [0, 4], [1, 1]]
    earned = earning_tokens(scored, ends, mask)
    assert earned.nonzero().tolist() == [[0, 3], [0, 4], [0, 5], [1, 1], [1, 2]]


def test_where_all_rewards_are_steps_the_last_token_earns_nothing_by_itself() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    samples = [sample("a\nb", [1, 2, 3, 3])]
    scored = score_samples({"steps": StepPattern("=")}, samples)
    paid, ends = token_rewards(scored, samples, mask)
    assert paid.tolist() == [[0, 0, 0, 0]]
    assert earning_tokens(scored, ends, mask).tolist() == [[False, True, True, False]]


def test_steps_of_an_unscored_response_are_not_paid() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    scored = score_samples({"steps": StepPattern("a"), "exact": ExactMatch()}, [sample("aaa")])
    paid, ends = token_rewards(scored, [sample("aaa")], mask)
    assert not scored.scored.any()
    assert not paid.any()
    assert not ends.any()
    assert not earning_tokens(scored, ends, mask).any()


@few
@given(responses=st.lists(TEXTS, min_size=1, max_size=4), data=st.data())
def test_every_step_is_paid_on_the_token_that_completes_it(
    responses: list[str], data: st.DataObject, tiny_model: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    ids = [tokenizer(response)["input_ids"] + [tokenizer.eos_token_id] for response in responses]
    ends = [token_ends(tokenizer, tokens, text) for tokens, text in zip(ids, responses, strict=True)]
    samples = [sample(*pair) for pair in zip(responses, ends, strict=True)]
    starts = [data.draw(st.integers(1, 3)) for _ in ids]
    width = max(start + len(tokens) for start, tokens in zip(starts, ids, strict=True))
    steps = torch.arange(width)
    mask = torch.stack([(steps >= s) & (steps < s + len(t)) for s, t in zip(starts, ids, strict=True)])
    reward = StepPattern("[a=]", weight=0.5)
    scored = score_samples({"steps": reward, "short": LengthPenalty(400)}, samples)
    expected = torch.zeros(mask.shape)
    ended = torch.zeros_like(mask)
    for row, of_sample in enumerate(reward.score_steps(samples)):
        so_far = [tokenizer.decode(ids[row][: k + 1]) for k in range(len(ids[row]))]
        for step in of_sample:
            done = [text.startswith(responses[row][: step.end]) for text in so_far]
            expected[row, starts[row] + done.index(True)] += 0.5 * step.score
            ended[row, starts[row] + done.index(True)] = True
        expected[row, starts[row] + len(ids[row]) - 1] -= len(ids[row]) / 400
    paid, where = token_rewards(scored, samples, mask)
    assert torch.allclose(paid, expected, atol=1e-6)
    assert torch.equal(where, ended)


def test_a_run_with_step_rewards(fit: Callable[..., Path]) -> None:
    folder = fit(
        *("--model.rewards.lines", "StepPattern", "--model.rewards.lines.pattern", ".*[0-9]"),
        *(
            "--model.rewards.lines.steps",
            " ",
            "--trainer.max_epochs",
            "2",
            "--trainer.limit_val_batches",
            "0",
        ),
    )
    for row in read_metrics(folder / "metrics.csv")[1:]:
        assert row["rewards/lines"] > 0
        assert row["rollout/reward"] == pytest.approx(row["rewards/digit"] + row["rewards/lines"], abs=1e-5)
