"""What environments pay: where a turn's reward stands, success, and the declared outcomes of episodes."""

import pytest
import torch
from helpers.episode_rows import episode, rollout

from grpo_pl.advantages import GroupRelative, ProcessGroupRelative
from grpo_pl.rewards.base import ProcessReward, RewardError, RewardFunction, score_samples
from grpo_pl.rewards.environment import EnvironmentReward, EnvironmentSuccess
from grpo_pl.rewards.feedback import RewardStage
from grpo_pl.rewards.rules import LengthPenalty
from grpo_pl.training.validation import Evaluation
from grpo_pl.types import Feedback, Outcome, Prompt, Rollout, Sample, only_here

PROMPT = Prompt(token_ids=[5], text="?", answer="")
TURNS = [[10, 11], [12, 13, 14]]


def group(*outcomes: Outcome, forks: bool = False, stop: str = "done") -> Rollout:
    """Episodes of two turns, of which episode n earns n and 1."""
    rows = [
        episode(n, [5], TURNS, [float(n), 1.0], outcome=outcome, forks=forks, stop=stop)  # type: ignore[arg-type]
        for n, outcome in enumerate(outcomes)
    ]
    return rollout([PROMPT], [row for of_episode in rows for row in of_episode])


def feedback(sampled: Rollout, **rewards: RewardFunction) -> Feedback:
    stage = RewardStage(rewards, [], torch.device("cpu"), only_here)
    return stage.feedback(sampled, stage.score(sampled))


def test_a_turns_reward_stands_on_the_last_token_that_was_said_in_it() -> None:
    """Also where that token has no text, as the one that ends a turn."""
    given = feedback(group("score", "score"), environment=EnvironmentReward(weight=2.0))
    # prompt, two tokens, an observation, three tokens
    assert given.rewards.tolist() == [[0, 0, 0, 0, 0, 0, 2], [0, 0, 2, 0, 0, 0, 2]]
    assert given.step_ends.int().tolist() == [[0, 0, 1, 0, 0, 0, 1]] * 2


def test_a_forked_episode_earns_the_same_at_the_same_tokens() -> None:
    whole, forked = (
        feedback(group("score", "score", forks=forks), environment=EnvironmentReward())
        for forks in (False, True)
    )
    sampled = [1, 2, 4, 5, 6]
    assert forked.rewards.tolist() == whole.rewards[:, sampled].tolist()
    assert forked.loss_mask.all()
    assert forked.group_ids.tolist() == [0, 0]


def test_process_supervision_over_turns_by_hand() -> None:
    """The rewards of steps are 0, 1, 1, 1: mean 3/4, population deviation sqrt(3)/4."""
    given = feedback(group("score", "score"), environment=EnvironmentReward())
    advantages = ProcessGroupRelative(ddof=0, eps=0.0)(given).advantages
    bad, good = -3 / 3**0.5, 1 / 3**0.5
    expected = [
        [0, bad + good, bad + good, 0, good, good, good],
        [0, 2 * good, 2 * good, 0, good, good, good],
    ]
    torch.testing.assert_close(advantages, torch.tensor(expected))


def test_penalties_of_length_count_sampled_tokens_alone() -> None:
    for forks in (False, True):
        scored = score_samples({"short": LengthPenalty(10)}, group("score", forks=forks).samples)
        assert scored.by_name["short"] == [-0.5]


def test_the_declared_outcome_is_done_to_every_kind_of_reward_with_a_weight() -> None:
    rewards = {
        "environment": EnvironmentReward(),
        "short": LengthPenalty(10, weight=2.0),
        "success": EnvironmentSuccess(threshold=1.0),
        "logged": LengthPenalty(10, weight=0.0),
    }
    scored = score_samples(rewards, group("score", "zero", "abstain", "score").samples)
    assert scored.by_name["environment"] == [1.0, 0.0, None, 4.0]
    assert scored.by_name["short"] == [-0.5, 0.0, None, -0.5]
    assert scored.by_name["success"] == [1.0, 0.0, None, 1.0]
    assert scored.by_name["logged"] == [-0.5] * 4
    assert scored.scored.tolist() == [True, True, False, True]
    assert scored.total.tolist() == [1.0, 0.0, 0.0, 4.0]
    assert scored.weighted["short"].tolist() == [-1.0, 0.0, 0.0, -1.0]
    assert [step.score for step in scored.steps[1]] == [0.0, 0.0], "its turns count, with 0"
    assert scored.steps[3][0].token == 1


def test_an_episode_that_abstains_is_in_no_statistic_and_no_reward_is_asked_about_it() -> None:
    class Picky(RewardFunction):
        def score(self, samples: list[Sample]) -> list[float]:  # type: ignore[override]
            assert all(sample.outcome != "abstain" for sample in samples)
            return [float(sample.turns[0].score) for sample in samples]

    credit = GroupRelative(scale="none")(feedback(group("score", "abstain", "score"), picky=Picky()))
    assert credit.advantages[:, 1].tolist() == [-1.0, 0.0, 1.0]


def test_success_needs_the_environments_end_and_its_reward() -> None:
    success = EnvironmentSuccess(threshold=2.0)
    assert success.score(group("score", "score", "score").samples) == [0.0, 1.0, 1.0]
    assert success.score(group("score", "score", stop="turns").samples) == [0.0, 0.0]
    assert success.extract("anything") is None


@pytest.mark.parametrize("reward", [EnvironmentReward(), EnvironmentSuccess()])
def test_a_run_without_an_environment_is_told_so(reward: ProcessReward) -> None:
    sample = Sample(prompt=PROMPT, response="5", response_tokens=1, truncated=False)
    with pytest.raises(RewardError, match=r"no episode of an environment: set data\.environment"):
        score_samples({"mine": reward}, [sample])


@pytest.mark.parametrize("forks", [False, True])
def test_validation_counts_episodes_by_their_outcomes(forks: bool) -> None:
    evaluation = Evaluation({"solved": EnvironmentSuccess(threshold=1.0)}, torch.device("cpu"))
    evaluation.update(group("score", "zero", "abstain", "score", forks=forks))
    numbers = evaluation.compute()
    assert numbers["val/solved_pass@1"] == 0.5
    assert numbers["val/solved_pass@4"] == 1.0
    assert numbers["val_sampled/response_tokens"] == 5.0
