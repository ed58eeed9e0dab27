"""The file that grpo_pl/losses/README.md prints."""

import torch

from grpo_pl.advantages import AdvantageEstimator, Credit
from grpo_pl.functional import importance_ratio
from grpo_pl.losses import Correction, LossTerm, MismatchCorrection, PolicyLoss, TokenLoss


class Power(PolicyLoss):
    def __init__(self, power: float = 0.5) -> None:
        self.power = power

    def __call__(self, logprobs, batch):
        ratio = importance_ratio(logprobs, batch.old_logprobs)
        return TokenLoss(-(ratio**self.power) * batch.advantages, {"train/ratio": ratio.detach()})


class Pull(LossTerm):
    def term(self, scores, batch):
        moved = scores.logprobs - batch.old_logprobs
        return TokenLoss(0.01 * moved**2, {})


class Bounded(MismatchCorrection):
    rejects = True  # because `kept` takes tokens out

    def __call__(self, old_logprobs, sampling_logprobs, mask, sum_over_ranks):
        ratio = importance_ratio(old_logprobs, sampling_logprobs)
        kept = (ratio < 3) | ~mask
        out, tokens = sum_over_ranks(torch.stack([(~kept).sum(), mask.sum()])).tolist()
        weights = torch.where(mask, ratio.sqrt(), 1.0)
        return Correction(weights, {"sync/out": out / max(tokens, 1)}, kept)


class OverAll(AdvantageEstimator):
    def __call__(self, feedback):
        known = feedback.loss_mask & feedback.scored[:, None]
        mean = feedback.outcome[feedback.scored].mean()
        return Credit(torch.where(known, feedback.outcome[:, None] - mean, 0.0), None)
