import logging
import math
import re
from collections.abc import Sequence

import pytest
import torch

from grpo_pl.rewards.base import RewardError, RewardFunction, Verifier, score_samples
from grpo_pl.rewards.feedback import reward_metrics
from grpo_pl.types import Prompt, Sample, ScoredSamples


def sample(response: str = "hello", tokens: int = 5) -> Sample:
    prompt = Prompt(token_ids=[1], text="What is 2 + 3?", answer="5")
    return Sample(prompt=prompt, response=response, response_tokens=tokens, truncated=False)


class Scripted(RewardFunction):
    """Looks its scores up by response; a callable entry is called, so that it may raise."""

    def __init__(self, scores, **kwargs):
        super().__init__(**kwargs)
        self.scores = scores
        self.batch_sizes = []

    def score(self, samples: Sequence[Sample]):
        self.batch_sizes.append(len(samples))
        entries = [self.scores[s.response] for s in samples]
        return [entry() if callable(entry) else entry for entry in entries]


def fail():
    raise ZeroDivisionError("no such luck")


def test_total_is_the_weighted_sum():
    rewards = {
        "a": Scripted({"x": 1.0, "y": 0.0}, weight=2.0),
        "b": Scripted({"x": 0.5, "y": -1.0}, weight=-0.5),
    }
    scored = score_samples(rewards, [sample("x"), sample("y")])
    assert scored.total.tolist() == [1.75, 0.5]
    assert scored.total.dtype == torch.float32
    assert scored.scored.tolist() == [True, True]
    assert scored.by_name == {"a": [1.0, 0.0], "b": [0.5, -1.0]}


def test_a_sample_on_which_a_weighted_reward_abstains_is_unscored_with_total_zero():
    rewards = {"a": Scripted({"x": None, "y": 1.0}), "b": Scripted({"x": 0.5, "y": 0.25})}
    scored = score_samples(rewards, [sample("x"), sample("y")])
    assert scored.total.tolist() == [0.0, 1.25]
    assert scored.scored.tolist() == [False, True]


def test_a_reward_of_weight_zero_is_logged_and_changes_neither_total_nor_scored():
    rewards = {"a": Scripted({"x": 1.0, "y": 0.5}), "logged": Scripted({"x": 9.0, "y": None}, weight=0.0)}
    scored = score_samples(rewards, [sample("x"), sample("y")])
    assert scored.total.tolist() == [1.0, 0.5]
    assert scored.scored.tolist() == [True, True]
    assert reward_metrics(scored)["rewards/logged"] == 9.0
    assert reward_metrics(scored)["rewards/logged_abstained"] == 0.5


def test_metrics_are_means_over_the_samples_that_have_the_number():
    rewards = {"a": Scripted({"x": 1.0, "y": 0.0, "z": None}), "b": Scripted({"x": 1.0, "y": 1.0, "z": 4.0})}
    metrics = reward_metrics(score_samples(rewards, [sample("x"), sample("y"), sample("z")]))
    assert metrics == {
        "rewards/a": 0.5,
        "rewards/a_abstained": pytest.approx(1 / 3),
        "rewards/b": 2.0,
        "rewards/b_abstained": 0.0,
        "rollout/reward": 1.5,
        "rollout/reward_std": 0.5,
    }


def test_all_samples_may_be_unscored_and_no_metric_is_nan():
    scored = score_samples({"a": Scripted({"x": None})}, [sample("x"), sample("x")])
    assert scored.scored.tolist() == [False, False]
    assert reward_metrics(scored) == {"rewards/a_abstained": 1.0}


def test_no_samples_and_no_rewards_are_legal():
    assert reward_metrics(score_samples({"a": Scripted({})}, [])) == {}
    assert score_samples({}, [sample()]).total.tolist() == [0.0]


def test_an_exception_is_blamed_on_its_sample_in_one_sentence():
    reward = Scripted({"good": 1.0, "bad": fail})
    with pytest.raises(RewardError) as info:
        score_samples({"mine": reward}, [sample("good"), sample("bad"), sample("good")])
    assert str(info.value) == (
        "Reward 'mine' failed with ZeroDivisionError: no such luck (prompt 'What is 2 + 3?', answer '5', "
        "response 'bad'); on_error: abstain would skip such samples."
    )
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_abstaining_on_error_spares_the_other_samples_and_warns(caplog):
    reward = Scripted({"good": 1.0, "bad": fail}, on_error="abstain")
    with caplog.at_level(logging.WARNING):
        scored = score_samples({"mine": reward}, [sample("good"), sample("bad"), sample("good")])
    assert scored.by_name == {"mine": [1.0, None, 1.0]}
    assert scored.scored.tolist() == [True, False, True]
    assert [record.message for record in caplog.records] == [
        "Reward 'mine' failed with ZeroDivisionError: no such luck (prompt 'What is 2 + 3?', answer '5', "
        "response 'bad'); it abstains."
    ]


def test_a_batch_that_works_is_scored_in_one_call():
    reward = Scripted({"x": 1.0})
    score_samples({"a": reward}, [sample("x")] * 7)
    assert reward.batch_sizes == [7]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_a_score_that_no_float32_holds_is_refused(bad):
    with pytest.raises(
        RewardError, match=rf"ValueError: it gave the score {re.escape(str(bad))} .*response 'x'"
    ):
        score_samples({"a": Scripted({"x": bad, "y": 1.0})}, [sample("y"), sample("x")])
    abstaining = Scripted({"x": bad, "y": 1.0}, on_error="abstain")
    assert score_samples({"a": abstaining}, [sample("y"), sample("x")]).by_name == {"a": [1.0, None]}


def test_the_wrong_number_of_scores_is_refused():
    class Short(RewardFunction):
        def score(self, samples: Sequence[Sample]):
            return [1.0] * (len(samples) // 2)

    with pytest.raises(RewardError, match="it gave 0 scores for 1 samples"):
        score_samples({"short": Short()}, [sample()] * 3)


def test_a_failure_that_needs_the_whole_batch_still_raises():
    class OnlySingly(RewardFunction):
        def score(self, samples: Sequence[Sample]):
            if len(samples) > 1:
                raise MemoryError("too many")
            return [1.0]

    with pytest.raises(RewardError, match="failed on a batch of 3, though on none of its samples alone"):
        score_samples({"a": OnlySingly()}, [sample()] * 3)
    assert score_samples({"a": OnlySingly(on_error="abstain")}, [sample()] * 3).by_name == {"a": [1.0] * 3}


def test_long_texts_are_shortened_in_the_message():
    response = "begin" + "-" * 100_000 + "end"
    with pytest.raises(RewardError) as info:
        score_samples({"a": Scripted({response: fail})}, [sample(response)])
    assert "begin" in str(info.value)
    assert "end'" in str(info.value)
    assert len(str(info.value)) < 500


def test_a_keyboard_interrupt_is_not_a_reward_error():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_samples({"a": Scripted({"x": interrupt}, on_error="abstain")}, [sample("x")])


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(ValueError, match=r"^weight=.*: expected a finite number"):
        Scripted({}, weight=weight)


def test_interfaces_cannot_be_built():
    for interface in (RewardFunction, Verifier):
        with pytest.raises(TypeError, match="abstract"):
            interface()


def test_the_example_of_scored_samples_holds():
    samples = [sample("x"), sample("y")]
    rewards = {
        "correct": Scripted({"x": 1.0, "y": None}),
        "short": Scripted({"x": 0.5, "y": 0.2}, weight=0.1),
    }
    scored = score_samples(rewards, samples)
    assert isinstance(scored, ScoredSamples)
    assert scored.by_name == {"correct": [1.0, None], "short": [0.5, 0.2]}
    assert scored.total.tolist() == pytest.approx([1.05, 0.0])
    assert scored.scored.tolist() == [True, False]
