"""Responses to learn by heart: all, those that are right, or the best of each group."""

import math
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from grpo_pl.advantages.base import AdvantageEstimator, group_has_signal, same_for_all_tokens
from grpo_pl.system.refusal import ArgumentError, check_at_least
from grpo_pl.types import Credit, Feedback


@final
class Imitation(AdvantageEstimator):
    """The advantage of a chosen response is 1, that of another 0: with `Reinforce`, maximum likelihood.

    With responses of a data set (`DatasetEngine`) it is supervised fine-tuning, with `above` of right answers
    alone, as in rejection-sampling fine-tuning (Yuan et al. 2023, arXiv:2308.01825, section 3.3). With the
    policy's own and `best=1` it is RAFT (Dong et al. 2023, arXiv:2304.06767, algorithm 1): the best of n.

    Args:
        best: How many responses of each group are chosen, those with the highest rewards (of equal ones the
            first); null for all.
        above: The reward that a chosen response must exceed; null for any. Without `best` and `above` no
            reward is needed, and an unscored response is learned too.
    """

    of_any_policy = True

    def __init__(self, best: int | None = None, above: float | None = None) -> None:
        if best is not None:
            check_at_least(1, best=best)
        self.best, self.above = best, above
        self.needs_rewards = best is not None or above is not None

    @property
    @override
    def linear(self) -> bool:
        return False

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        chosen = self._chosen(feedback)
        return same_for_all_tokens(torch.ones_like(feedback.outcome), chosen, feedback)

    def _chosen(self, feedback: Feedback) -> Bool[Tensor, "N"]:
        if not self.needs_rewards:
            return torch.ones_like(feedback.scored)
        rewards = torch.where(feedback.scored, feedback.outcome, -torch.inf)
        chosen = feedback.scored if self.above is None else feedback.scored & (rewards > self.above)
        if self.best is None:
            return chosen
        earlier = torch.ones(len(rewards), len(rewards), dtype=torch.bool).tril(-1).to(rewards.device)
        ahead = (rewards > rewards[:, None]) | ((rewards == rewards[:, None]) & earlier)
        rank = (ahead & (feedback.group_ids == feedback.group_ids[:, None])).sum(-1)
        return chosen & (rank < self.best)


@final
class DirectPreference(AdvantageEstimator):
    """DPO: each pair of a group with unequal rewards pulls its better response up and its worse one down.

    With h = sum_t (log p_t - log q_t), q the reference, the loss of a pair is -log sigmoid(beta (h_+ - h_-)),
    Rafailov et al. 2023, arXiv:2305.18290, eq. 7. Its gradient is that of `Reinforce` with the advantages
    +-beta sigmoid(-beta (h_+ - h_-)), which are computed once a rollout, with the policy before its updates:
    exactly DPO with one update a rollout (`data.minibatches 1`). Deviations: a group of more than two has the
    mean over all of its pairs, and the paper sums over tokens, as `ConstantLength` does up to a factor.

    Pairs of a data set come by `DatasetEngine`, those of the policy itself make it online.

    Args:
        beta: How far the policy may go from the reference: the larger, the less; above 0.
    """

    needs_reference = True
    of_any_policy = True
    min_group_size = 2

    def __init__(self, beta: float = 0.1) -> None:
        if not 0 < beta < math.inf:
            raise ArgumentError(f"beta={beta}: expected a number above 0")
        self.beta = beta

    @override
    def __call__(self, feedback: Feedback) -> Credit:
        old, reference = feedback.old_logprobs, feedback.ref_logprobs
        assert old is not None, "the models score before an estimator that needs the reference"
        assert reference is not None, "check_components refuses it without a reference"
        distance = torch.where(feedback.loss_mask, old - reference, 0.0).sum(-1)
        better = self._better(feedback)
        pulls = torch.where(better, torch.sigmoid(self.beta * (distance - distance[:, None])), 0.0)
        same = feedback.group_ids[:, None] == feedback.group_ids
        pairs = torch.where(same, better.sum(-1), 0).sum(-1)
        advantages = self.beta * (pulls.sum(-1) - pulls.sum(0)) / pairs.clamp(min=1)
        return same_for_all_tokens(advantages, self.has_signal(feedback), feedback)

    @override
    def has_signal(self, feedback: Feedback) -> Bool[Tensor, "N"]:
        """The scored responses of groups with unequal rewards, known before the models have scored."""
        return group_has_signal(feedback, feedback.scored)

    def _better(self, feedback: Feedback) -> Bool[Tensor, "N N"]:
        """Whether the response of the row beats that of the column: the pairs."""
        outcome, ids, scored = feedback.outcome, feedback.group_ids, feedback.scored
        pair = (ids[:, None] == ids) & scored[:, None] & scored
        return pair & (outcome[:, None] > outcome)
