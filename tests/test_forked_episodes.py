"""Forked histories change nothing: every group of a toy policy of two turns is enumerated."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.episode_rows import episode, rollout
from helpers.exact import F64, close
from torch import Tensor

from grpo_pl.advantages import (
    GAE,
    GDPO,
    OPO,
    AdvantageEstimator,
    GroupRelative,
    LeaveOneOut,
    PassAtK,
    ProcessGroupRelative,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
)
from grpo_pl.experience import ExperienceStage
from grpo_pl.losses import (
    GMPO,
    GSPO,
    VESPO,
    Aggregation,
    ClippedSurrogate,
    ConstantLength,
    OffPolicyMask,
    PolicyLoss,
    PromptMean,
    Reinforce,
    SequenceMean,
    TokenMean,
)
from grpo_pl.losses.correction import ImportanceCorrection
from grpo_pl.losses.covariance import KLCov
from grpo_pl.losses.masks import TopEntropy
from grpo_pl.losses.objective import Objective
from grpo_pl.losses.positive import PositiveNLL
from grpo_pl.losses.rejection import RatioRejection
from grpo_pl.minibatches import UpdateSchedule, micro_batches
from grpo_pl.rewards.environment import EnvironmentReward
from grpo_pl.rewards.feedback import RewardStage
from grpo_pl.rewards.rules import LengthPenalty
from grpo_pl.training.silent_sample import SilentSample
from grpo_pl.types import Experience, Prompt, Rollout, Sequences, TokenScores, only_here

FIRST, SECOND = [0.3, -0.2], [[0.5, 1.0], [-0.4, 0.9]]
"""What the environment pays for the first turn a, and for the second turn b after a."""
LOGITS = torch.tensor([[0.2, -0.3], [0.6, 0.1], [-0.5, 0.4]], dtype=F64)
"""Of the first turn, and of the second after each first."""
MOVED = LOGITS + torch.tensor([[0.3, -0.1], [-0.4, 0.2], [0.1, 0.5]], dtype=F64)
EPISODES = list(itertools.product(range(2), repeat=2))
Forks = list[tuple[int, int]]
"""The episodes whose history is forked."""
NEVER: Forks = []
ALWAYS: Forks = EPISODES
SOMETIMES: Forks = [(1, 0), (1, 1)]  # so that the number of rows depends on what was sampled


def sampled(group: Sequence[tuple[int, int]], forks: Forks) -> Rollout:
    """A group of episodes to one prompt; the tokens of a turn are 10 or 11."""
    rows = [
        row
        for n, (a, b) in enumerate(group)
        for row in episode(n, [5], [[10 + a], [10 + b]], [FIRST[a], SECOND[a][b]], forks=(a, b) in forks)
    ]
    return rollout([Prompt(token_ids=[5], text="?", answer="")], rows)


def scorer(logits: Tensor) -> Callable[[Sequences], TokenScores]:
    """The toy policy: a token depends on the turn before it, wherever that stands."""

    def score(batch: Sequences) -> TokenScores:
        distribution = logits.log_softmax(-1)
        spread = -(distribution.exp() * distribution).sum(-1).detach()
        logprobs = torch.zeros(batch.token_ids.shape, dtype=F64)
        entropy, values = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
        for row, t in batch.loss_mask.nonzero().tolist():
            ids = batch.token_ids[row].tolist()
            state = next((1 + token - 10 for token in ids[:t] if token in (10, 11)), 0)
            chosen = torch.zeros_like(logprobs)
            chosen[row, t] = 1
            logprobs = logprobs + chosen * distribution[state, ids[t] - 10]
            entropy[row, t] = spread[state]
            values[row, t] = 0.1 + 0.2 * state
        return TokenScores(logprobs=logprobs, entropy=entropy, values=values)

    return score


def learn(
    one: Rollout,
    advantage: AdvantageEstimator,
    loss: PolicyLoss | None = None,
    aggregation: Aggregation | None = None,
    now: Tensor = LOGITS,
    steps: tuple[int, int] = (1, 1),
    **options: Any,
) -> tuple[Tensor, list[Experience]]:
    """The gradient of an iteration, in minibatches and micro-batches, and the pieces it comes from."""
    loss = loss or Reinforce()
    terms = {"policy": loss} | options.pop("terms", {})
    stage = ExperienceStage(
        **{
            "rewards": RewardStage({"env": EnvironmentReward()}, [], torch.device("cpu"), only_here),
            "advantage": advantage, "kl": None, "masks": [], "correction": None, "terms": [*terms.values()],
            "trained": scorer(LOGITS), "reference": None, "reads_silent": False,
            "silent": SilentSample(0, 0, 1, only_here), "scores_first": True,
        }
        | options
    )  # fmt: skip
    schedule = UpdateSchedule(minibatches=steps[0], update_epochs=1, micro_batches=steps[1], seed=3)
    episodes = None if one.episodes is None else one.episodes.tolist()
    plan = schedule.steps(one.lengths, one.group_ids.tolist(), 0, episodes)
    pieces = list(micro_batches(stage(one, plan, 0), plan, only_here))
    logits = now.clone().requires_grad_()
    objective = Objective(terms, aggregation or ConstantLength(1))
    for piece in pieces:
        objective(scorer(logits)(piece), piece).total.backward()
    assert logits.grad is not None
    return -logits.grad, pieces


ESTIMATORS = [
    LeaveOneOut(), GroupRelative(), GDPO(), OPO(), PassAtK(2), ProcessGroupRelative(),
    GAE(gamma=0.9, lam=0.8), ReinforcePlusPlus(gamma=0.9), ReinforcePlusPlusBaseline(),
]  # fmt: skip
GROUP = [(0, 1), (1, 0), (1, 1), (0, 0)]


def assert_same_gradient(forks: Forks, *args: Any, **options: Any) -> None:
    plain, _ = learn(sampled(GROUP, NEVER), *args, **options)
    forked, _ = learn(sampled(GROUP, forks), *args, **options)
    close(forked, plain, 1e-6)
    assert plain.abs().sum() > 1e-3


@pytest.mark.parametrize("forks", [ALWAYS, SOMETIMES], ids=["always", "sometimes"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_no_estimator_sees_whether_a_history_was_forked(estimator: AdvantageEstimator, forks: Forks) -> None:
    assert_same_gradient(forks, estimator, Reinforce(), TokenMean(), reads_silent=True)


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(3), PromptMean()])
@pytest.mark.parametrize(
    "loss",
    [
        ClippedSurrogate(),
        ClippedSurrogate(level="sequence"),
        GSPO(0.3, 0.4),
        GMPO(),
        VESPO(behaviour="old"),
        OffPolicyMask(),
    ],
    ids=["clip", "sequence", "gspo", "gmpo", "vespo", "mask"],
)
def test_no_loss_and_no_aggregation_sees_it_either(loss: PolicyLoss, aggregation: Aggregation) -> None:
    assert_same_gradient(SOMETIMES, LeaveOneOut(), loss, aggregation, MOVED)


@pytest.mark.parametrize(
    "options",
    [
        {"correction": ImportanceCorrection(level="sequence", high=50.0)},
        {"correction": ImportanceCorrection(level="geometric", high=9.0, normalize=True)},
        {"correction": RatioRejection("sequence", 0.0, 40.0), "reads_silent": True},
        {"masks": [TopEntropy(0.5)], "reads_silent": True},
        {"terms": {"right": PositiveNLL(above=0.5)}, "reads_silent": True},
        {"loss": KLCov(share=0.3), "now": MOVED},
        {
            "rewards": RewardStage(
                {"env": EnvironmentReward(), "short": LengthPenalty(9)}, [], torch.device("cpu"), only_here
            )
        },
    ],
    ids=["sequence", "geometric", "rejection", "entropy", "positive", "covariance", "rewards"],
)
def test_corrections_masks_and_terms_of_sequences_are_those_of_episodes(options: dict[str, Any]) -> None:
    assert_same_gradient(SOMETIMES, LeaveOneOut(), aggregation=SequenceMean(), **options)


@pytest.mark.parametrize("steps", [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_rows_of_an_episode_share_a_micro_batch_and_are_counted_as_one_sequence(
    steps: tuple[int, int],
) -> None:
    one = sampled(GROUP, SOMETIMES)
    _, pieces = learn(one, LeaveOneOut(), steps=steps)
    assert len(pieces) == steps[0] * steps[1]
    owners = [set(piece.episodes.tolist()) for piece in pieces if piece.episodes is not None]
    assert sorted(owner for own in owners for owner in own) == [0, 1, 2, 3], "no row is dropped or read twice"
    assert sum(len(piece.token_ids) for piece in pieces) == 6
    assert {piece.num_sequences for piece in pieces} == {4 // steps[0]}
    assert sum(int(piece.loss_mask.sum()) for piece in pieces) == 8


def test_metrics_and_samples_are_of_episodes() -> None:
    (_, (plain,)), (_, (forked,)) = (
        learn(sampled(GROUP, forks), GroupRelative()) for forks in (NEVER, ALWAYS)
    )
    assert forked.metrics == plain.metrics
    assert forked.metrics["rollout/response_tokens"] == 2
    assert forked.records == plain.records
    assert [record.stop for record in forked.records] == ["done"] * 4
    assert forked.records[2].transcript == [{"role": "user", "content": "episode 2"}]


def test_a_silent_episode_is_read_with_all_of_its_rows_or_not_at_all() -> None:
    """Equal rewards give no advantage; one episode of the group is read all the same."""
    one = sampled([(0, 1)] * 3, ALWAYS)
    _, (piece,) = learn(one, LeaveOneOut(), silent=SilentSample(1, 0, 1, only_here))
    assert piece.episodes is not None
    assert len(piece.episodes) == 2
    assert len(set(piece.episodes.tolist())) == 1
    assert piece.stands_for is not None
    assert piece.stands_for.tolist() == [3.0, 3.0]


def expectation(forks: Forks, estimator: AdvantageEstimator, size: int, aggregation: Aggregation) -> Tensor:
    """The expected gradient over all groups of a size."""
    distribution = LOGITS.softmax(-1)
    chances = {(a, b): float(distribution[0, a] * distribution[1 + a, b]) for a, b in EPISODES}
    total = torch.zeros_like(LOGITS)
    for group in itertools.product(EPISODES, repeat=size):
        chance = torch.tensor([chances[one] for one in group]).prod()
        total += chance * learn(sampled(group, forks), estimator, aggregation=aggregation)[0]
    return total


def exact() -> Tensor:
    """The gradient of the expected reward of an episode."""
    logits = LOGITS.clone().requires_grad_()
    p = logits.softmax(-1)
    value = sum(p[0, a] * p[1 + a, b] * (FIRST[a] + SECOND[a][b]) for a, b in EPISODES)
    assert isinstance(value, Tensor)
    return torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("forks", [NEVER, ALWAYS, SOMETIMES], ids=["never", "always", "sometimes"])
def test_baselines_over_episodes_add_no_bias_however_many_rows_they_have(forks: Forks) -> None:
    gradient = exact()
    assert gradient.norm() > 0.05
    close(expectation(forks, LeaveOneOut(), 3, ConstantLength(1)), gradient, 1e-6)
    close(expectation(forks, GroupRelative(scale="none"), 2, ConstantLength(1)), gradient / 2, 1e-6)
    # every episode has two sampled tokens, so that the mean over tokens is half of the sum over episodes
    close(expectation(forks, LeaveOneOut(), 2, TokenMean()), gradient / 2, 1e-6)


def test_a_baseline_over_rows_would_be_biased() -> None:
    """What counting rows would do: each row a response of its own, as step-wise training has it."""
    distribution, biased = LOGITS.softmax(-1), torch.zeros_like(LOGITS)
    for group in itertools.product(EPISODES, repeat=2):
        chance = torch.stack([distribution[0, a] * distribution[1 + a, b] for a, b in group]).prod()
        paid = [FIRST[a] + SECOND[a][b] for a, b in group]
        weights = [2 if one in SOMETIMES else 1 for one in group]
        mean = sum(w * r for w, r in zip(weights, paid, strict=True)) / sum(weights)
        for (a, b), reward in zip(group, paid, strict=True):
            logits = LOGITS.clone().requires_grad_()
            logprob = logits.log_softmax(-1)[0, a] + logits.log_softmax(-1)[1 + a, b]
            biased += chance * (reward - mean) * torch.autograd.grad(logprob, logits)[0]
    cosine = torch.nn.functional.cosine_similarity(biased.flatten(), exact().flatten(), dim=0)
    assert cosine < 0.999
