"""The critic's loss."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.losses.base import LossTerm
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenLoss, TokenScores


@final
class ClippedValueLoss(LossTerm):
    """PPO's value loss: 1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2), as in OpenAI's baselines.

    Args:
        coefficient: Weight beside the policy's loss.
        clip: How far the value may move from that at sampling time before its gradient stops, in units of
            reward.
    """

    description = "the critic's loss of tokens"
    advice = "a lower model.critic_lr"
    of_critic = True

    def __init__(self, coefficient: float = 0.5, clip: float = 0.2) -> None:
        if coefficient < 0 or clip <= 0:
            raise ArgumentError(f"coefficient={coefficient}, clip={clip}: expected >= 0 and > 0")
        self.coefficient, self.clip = coefficient, clip

    def __call__(self, values: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        """Loss of each token; the gradient flows through `values` alone."""
        assert batch.returns is not None, "experience of a run with a critic"
        assert batch.old_values is not None, "experience of a run with a critic"
        clipped = values.clamp(batch.old_values - self.clip, batch.old_values + self.clip)
        error, clipped_error = (values - batch.returns) ** 2, (clipped - batch.returns) ** 2
        metrics = {
            "train/value_loss": error.detach() / 2,
            "train/value_clip_fraction": (clipped_error > error).float(),
        }
        return TokenLoss(self.coefficient * torch.maximum(error, clipped_error) / 2, metrics)

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        assert scores.values is not None, "a run with a critic"
        return self(scores.values, batch)
