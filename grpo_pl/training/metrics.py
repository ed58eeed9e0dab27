"""Reports of an iteration: numbers for curves, and responses for people to read."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.functional import (
    generalized_advantages,
    groups_with,
    importance_ratio,
    masked_mean,
    mean_and_std,
)
from grpo_pl.types import Experience, Feedback, Rollout, SampleRecord, ScoredSamples


def rollout_metrics(
    rollout: Rollout,
    experience: Experience,
    version: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
    has_signal: Bool[Tensor, "N"] | None,
) -> dict[str, float]:
    """Lengths, truncation, signal (as `AdvantageEstimator.has_signal` says, if asked), tokens, staleness.

    `version` counts the trainer's optimizer steps so far. Means over sequences are of this rank, since every
    rank has as many; other numbers are of all ranks.
    """
    mask = experience.loss_mask
    tokens = sum_over_ranks(torch.stack([mask.sum().cpu(), torch.tensor(rollout.tokens_generated)])).tolist()
    metrics = {
        "rollout/policy_version": float(rollout.policy_version),
        "rollout/response_tokens": float(mask.sum(-1).float().mean()),
        "rollout/tokens": float(tokens[0]),
        "rollout/tokens_generated": float(tokens[1]),
        "rollout/truncated": float(rollout.truncated[rollout.firsts].float().mean()),
        "train/read": float(experience.read.any(-1).float().mean()),
    }
    if has_signal is not None:
        with_signal = groups_with(has_signal.cpu(), rollout.group_ids[rollout.firsts]).tolist()
        metrics["rollout/groups_without_signal"] = with_signal.count(False) / len(with_signal)
    if not rollout.offline:  # whose version is another policy's
        metrics["rollout/staleness"] = float(version - rollout.policy_version)
    return metrics | rollout.metrics


def explained_variance(feedback: Feedback, gamma: float) -> dict[str, float]:
    """How much of the returns the critic foresees: 1 - Var(G - V) / Var(G), over the scored tokens.

    G_t = r_t + gamma G_{t+1} is the return that the rest of the response earned, a KL in the reward included,
    and V the critic's value before the update; over the response tokens of scored responses, of all ranks. It
    is independent of the estimator's lambda: the target A + V of a critic that knows nothing is mostly V
    itself. 1 is perfect, 0 a constant, below 0 worse than a constant. A constant error counts as none.
    Nothing without a critic, and where all returns are alike, for then there is nothing to explain.
    """
    if feedback.values is None:
        return {}
    known = feedback.loss_mask & feedback.scored[:, None]
    returns = generalized_advantages(
        feedback.paid, torch.zeros_like(feedback.values), known, gamma=gamma, lam=1.0
    )
    of_returns, of_errors = (
        mean_and_std(numbers, known, ddof=0, sum_over_ranks=feedback.sum_over_ranks)[1].item()
        for numbers in (returns, returns - feedback.values)
    )
    return {"train/explained_variance": 1 - (of_errors / of_returns) ** 2} if of_returns > 0 else {}


def teacher_metrics(feedback: Feedback) -> dict[str, float]:
    """`rollout/teacher_kl`: KL(policy || teacher) in nats a token, over the response tokens of all ranks.

    It is the mean of k1, unbiased: the tokens are samples of the policy before the update, at the sampling
    temperature.
    """
    assert feedback.old_logprobs is not None, "the models have scored"
    assert feedback.ref_logprobs is not None, "and so has the reference"
    apart = torch.where(feedback.loss_mask, feedback.old_logprobs - feedback.ref_logprobs, 0.0)
    sums = torch.stack([apart.double().sum(), feedback.loss_mask.double().sum()])
    total, tokens = feedback.sum_over_ranks(sums).tolist()
    return {"rollout/teacher_kl": total / max(tokens, 1.0)}


def sample_records(
    rollout: Rollout, scored: ScoredSamples, experience: Experience | None = None
) -> list[SampleRecord]:
    """Every response with its rewards, for people to read; the advantage is the mean over its tokens."""
    advantages: list[float | None] = [None] * len(scored.scored)
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
            stop=sample.stop,
            transcript=sample.transcript,
        )
        for row, sample in enumerate(rollout.samples)
    ]


class ReadTokens:
    """Means over the tokens that the trained models have read in an iteration, and one effective sample size.

    Over all optimizer steps, micro-batches and ranks. Where `Experience.stands_for` is set, each token counts
    that many times, so that the means are estimates over all responses. What no rank has read has no mean:
    it is left out, and nothing else enters a mean in its place.

    `train/effective_sample_size` is the share of tokens that would carry as much information with equal
    weights: (sum r)^2 / (n sum r^2), Kish 1965 ("Survey Sampling") as a share of the sample, with r =
    exp(logprobs - old_logprobs) before any clip, over the read tokens that the loss counts. 1 where the
    policy has not moved.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._tokens = self._moments = torch.zeros(())
        self.highest_mismatch = torch.zeros(())
        """On this rank: the largest difference of a token's log-probabilities by engine and trainer."""

    def add(self, metrics: Mapping[str, Float[Tensor, "B T"]], logprobs: Tensor, batch: Experience) -> None:
        """Add the tokens of a micro-batch: their metrics, and their log-probabilities by the policy."""
        mismatch = metrics["sync/logprob_mismatch"]
        self.highest_mismatch = torch.maximum(self.highest_mismatch.to(mismatch), mismatch.max())
        read, times = batch.read, batch.stands_for
        times = times if times is None else times[:, None].expand_as(read)
        tokens = read.sum() if times is None else torch.where(read, times, 0.0).sum()
        for name, values in metrics.items():
            values = values.detach()
            if times is None:
                total = masked_mean(values, read) * tokens
            else:
                total = torch.where(read, values * times, 0.0).sum()
            self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total
        self._tokens = self._tokens.to(tokens.device) + tokens.double()
        ratio = importance_ratio(logprobs.detach(), batch.old_logprobs).double()
        powers = torch.stack([torch.ones_like(ratio), ratio, ratio.square()])
        powers = torch.where(read & batch.counted, powers if times is None else powers * times, 0.0)
        self._moments = self._moments.to(ratio.device) + powers.flatten(1).sum(-1)

    def compute(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The numbers of the iteration, the same on every rank; collective."""
        totals = [total.double() for total in self._sums.values()]
        sums = sum_over_ranks(torch.stack([*totals, self._tokens, *self._moments]))
        of_metrics, (tokens, count, ratios, squares) = sums[:-4], sums[-4:]
        numbers: dict[str, Tensor] = {}
        if tokens > 0:
            numbers |= dict(zip(self._sums, (of_metrics / tokens).float(), strict=True))
        if count > 0:
            numbers["train/effective_sample_size"] = ratios.square() / (count * squares)
        return numbers
