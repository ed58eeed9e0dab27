"""Reports of an iteration: numbers for curves, and responses for people to read."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from grpo_pl.functional import groups_with, importance_ratio
from grpo_pl.types import Experience, Rollout, SampleRecord, ScoredSamples


def rollout_metrics(
    rollout: Rollout,
    experience: Experience,
    version: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
    has_signal: Bool[Tensor, "N"],
) -> dict[str, float]:
    """Lengths, truncation, signal (as `AdvantageEstimator.has_signal` says), staleness, explained variance.

    `version` counts the trainer's optimizer steps so far. Means over sequences are of this rank, since every
    rank has as many; other numbers are of all ranks.
    """
    mask = experience.loss_mask
    with_signal = groups_with(has_signal.cpu(), rollout.group_ids).tolist()
    metrics = {
        "rollout/policy_version": float(rollout.policy_version),
        "rollout/response_tokens": float(mask.sum(-1).float().mean()),
        "rollout/tokens": float(sum_over_ranks(mask.sum())),
        "rollout/truncated": float(rollout.truncated.float().mean()),
        "rollout/groups_without_signal": with_signal.count(False) / len(with_signal),
    }
    if not rollout.offline:  # whose version is another policy's
        metrics["rollout/staleness"] = float(version - rollout.policy_version)
    metrics |= rollout.metrics
    if experience.returns is not None and experience.old_values is not None:
        error = (experience.returns - experience.old_values)[mask]
        moments = [
            torch.stack([x.double().square().sum(), x.double().sum()])
            for x in (error, experience.returns[mask])
        ]
        (error_square, error_sum), (square, total) = sum_over_ranks(torch.stack(moments)).tolist()
        tokens = max(metrics["rollout/tokens"], 1.0)
        variance = square / tokens - (total / tokens) ** 2
        unexplained = error_square / tokens - (error_sum / tokens) ** 2
        metrics["train/explained_variance"] = 1 - unexplained / variance if variance > 1e-12 else 0.0
    return metrics


def sample_records(
    rollout: Rollout, scored: ScoredSamples, experience: Experience | None = None
) -> list[SampleRecord]:
    """Every response with its rewards, for people to read; the advantage is the mean over its tokens."""
    advantages: list[float | None] = [None] * len(rollout.prompts)
    if experience is not None:
        tokens = experience.loss_mask.sum(-1).clamp(min=1)
        advantages = (experience.advantages.sum(-1) / tokens).tolist()
    return [
        SampleRecord(
            prompt=sample.prompt.text,
            messages=sample.prompt.messages if len(sample.prompt.messages) > 1 else [],
            answer=sample.prompt.answer,
            response=sample.response,
            response_tokens=sample.response_tokens,
            truncated=sample.truncated,
            rewards={name: scores[row] for name, scores in scored.by_name.items()},
            reward=float(scored.total[row]) if scored.scored[row] else None,
            advantage=advantages[row],
        )
        for row, sample in enumerate(rollout.samples)
    ]


class EffectiveSampleSize(Metric):
    """The share of tokens that would carry as much information with equal weights: (sum r)^2 / (n sum r^2).

    Kish 1965 ("Survey Sampling"), as a share of the sample, with r = exp(logprobs - old_logprobs) before any
    clip. The sums go over the counted tokens that are read, of all optimizer steps, micro-batches and ranks
    of an iteration. 1 where the policy has not moved, 0 where there is no token.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, logprobs: Float[Tensor, "B T"], batch: Experience) -> None:
        mask = batch.read & batch.counted
        ratio = torch.where(mask, importance_ratio(logprobs, batch.old_logprobs), 0.0).double()
        self.sums += torch.stack([mask.sum(), ratio.sum(), ratio.square().sum()])

    @override
    def compute(self) -> Tensor:
        """The share; collective."""
        count, total, squares = self.sums
        return torch.where(count > 0, total.square() / (count * squares), 0.0)
