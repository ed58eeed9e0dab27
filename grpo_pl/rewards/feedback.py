"""Rollout -> Feedback: the rewards of its tokens, as advantage estimators read them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.functional import EpisodeTokens
from grpo_pl.rewards.base import RewardFunction, earning_tokens, score_samples, token_rewards
from grpo_pl.rewards.transforms import RewardTransform
from grpo_pl.types import Feedback, Rollout, Sample, ScoredSamples, only_here


@dataclass(frozen=True)
class RewardStage:
    """From scored samples to the rewards of tokens, on the device of the learner."""

    rewards: Mapping[str, RewardFunction]
    transforms: Sequence[RewardTransform]
    """Applied in this order."""
    device: torch.device
    sum_over_ranks: Callable[[Tensor], Tensor]
    """The sum of a tensor over all ranks; collective."""

    def score(self, rollout: Rollout) -> ScoredSamples:
        """The scores of the rollout, computed unless they came with it."""
        return rollout.rewards or score_samples(self.rewards, rollout.samples)

    def feedback(self, rollout: Rollout, scored: ScoredSamples, *, observe: bool = True) -> Feedback:
        """The rewards of a rollout's tokens, by episode: `EpisodeTokens`.

        `observe` says whether transforms add them to running statistics: do so once a rollout.
        """
        tokens = EpisodeTokens(rollout.loss_mask, rollout.episodes)
        loss_mask = tokens.together(rollout.loss_mask)
        group_ids = tokens.together(rollout.group_ids).to(self.device)
        rewards, step_ends = self._token_rewards(scored, rollout.samples, loss_mask, observe=observe)
        greedy = self.greedy_rewards(rollout.greedy)[group_ids] if rollout.greedy else None
        return Feedback(
            rewards=rewards,
            step_ends=step_ends,
            scored=scored.scored.to(self.device),
            loss_mask=loss_mask.to(self.device),
            group_ids=group_ids,
            truncated=tokens.together(rollout.truncated).to(self.device),
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


def reward_metrics(
    scored: ScoredSamples, sum_over_ranks: Callable[[Tensor], Tensor] = only_here
) -> dict[str, float]:
    """Means over the samples of all ranks for which a number is known; empty means are left out.

    `rewards/<name>` over those on which the reward did not abstain, `rewards/<name>_abstained`,
    `rewards/<name>_timeouts` and `rewards/<name>_crashes` (fractions of all samples, the last two for a
    reward that is computed in worker processes), `rollout/reward` and `rollout/reward_std` (population)
    over the scored, where a reward has a weight.
    """
    metrics: dict[str, float] = {}
    known = [[score for score in scores if score is not None] for scores in scored.by_name.values()]
    total = scored.total[scored.scored].double()
    local = [[float(len(scores)), math.fsum(scores)] for scores in known]
    local += [
        [float(len(scored.scored)), float(len(total))],
        [total.sum().item(), total.square().sum().item()],
    ]
    *sums, (samples, count), (total_sum, squares) = sum_over_ranks(
        torch.tensor(local, dtype=torch.float64)
    ).tolist()
    for name, (num_scores, score_sum) in zip(scored.by_name, sums, strict=True):
        if num_scores:
            metrics[f"rewards/{name}"] = score_sum / num_scores
        if samples:
            metrics[f"rewards/{name}_abstained"] = 1 - num_scores / samples
        for kind, failed in scored.failures.get(name, {}).items():
            metrics[f"rewards/{name}_{kind}"] = failed / max(scored.attempts, 1)
    if count and scored.weighted:
        mean = total_sum / count
        metrics["rollout/reward"] = mean
        metrics["rollout/reward_std"] = math.sqrt(max(squares / count - mean * mean, 0.0))
    return metrics
