"""Rollout -> Feedback: what the rewards say of it, as advantage estimators read it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.rewards.base import (
    RewardFunction,
    ScoredSamples,
    earning_tokens,
    score_samples,
    token_rewards,
)
from grpo_pl.rewards.transforms import RewardTransform
from grpo_pl.types import Feedback, Rollout, Sample


@dataclass(frozen=True)
class RewardStage:
    """From scored samples to the rewards of tokens, on the device of the learner."""

    rewards: Mapping[str, RewardFunction]
    transforms: Sequence[RewardTransform]
    """Applied in this order."""
    device: torch.device
    sum_over_ranks: Callable[[Tensor], Tensor]
    """The sum of a tensor over all ranks; collective."""

    def feedback(self, rollout: Rollout, scored: ScoredSamples, samples: Sequence[Sample]) -> Feedback:
        """What the rewards say of a rollout; `scored` are the scores of its `samples`.

        Running statistics of the transforms take its rewards in: once for each rollout.
        """
        rewards, step_ends = self._token_rewards(scored, samples, rollout.loss_mask, observe=True)
        greedy = None
        if rollout.greedy:
            greedy = self.greedy_rewards(rollout.greedy)[rollout.group_ids.to(self.device)]
        return Feedback(
            rewards=rewards,
            step_ends=step_ends,
            scored=scored.scored.to(self.device),
            loss_mask=rollout.loss_mask.to(self.device),
            group_ids=rollout.group_ids.to(self.device),
            truncated=rollout.truncated.to(self.device),
            by_name={name: score.to(self.device) for name, score in scored.weighted.items()},
            weights={name: self.rewards[name].weight for name in scored.weighted},
            greedy=greedy,
            sum_over_ranks=self.sum_over_ranks,
        )

    def greedy_rewards(self, samples: Sequence[Sample]) -> Float[Tensor, "P"]:
        """The whole reward of each greedy response, in the units of the sampled ones; NaN where unknown."""
        lengths = torch.tensor([sample.response_tokens for sample in samples])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        scored = score_samples(self.rewards, samples)
        rewards = self._token_rewards(scored, samples, mask, observe=False)[0].sum(-1)
        return torch.where(scored.scored.to(self.device), rewards, math.nan)

    def _token_rewards(
        self,
        scored: ScoredSamples,
        samples: Sequence[Sample],
        loss_mask: Bool[Tensor, "N T"],
        *,
        observe: bool,
    ) -> tuple[Float[Tensor, "N T"], Bool[Tensor, "N T"]]:
        """The transformed reward of each token and where steps end."""
        rewards, step_ends = token_rewards(scored, samples, loss_mask)
        earned = earning_tokens(scored, step_ends, loss_mask).to(self.device)
        rewards = rewards.to(self.device)
        for transform in self.transforms:
            if observe:
                transform.observe(rewards, earned, self.sum_over_ranks)
            rewards = transform(rewards, earned)
        return rewards, step_ends.to(self.device)
