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

    Aggregated over all response tokens, whatever `model.masks` say: GAE bootstraps from the value of each,
    and a critic that never sees truncated responses is too high where truncation is likely. Unscored
    responses, whose targets are their own old values, count in the denominators as they do in the policy's
    loss: a step in which half of the rewards are unknown moves both models half as far.

    Args:
        coefficient: Weight beside the policy's loss.
        clip: How far the value may move from that at sampling time before its gradient stops, in units of
            reward; null for no clip. verl's and OpenRLHF's 0.5 hardly acts on rewards in [0, 1]; PPO's 0.2
            (NeMo-RL, TRL) needs several rollouts to get from 0 to 1.
    """

    description = "the critic's loss of tokens"
    advice = "a lower model.critic_lr"
    of_critic = True

    def __init__(self, coefficient: float = 0.5, clip: float | None = 0.5) -> None:
        if coefficient < 0 or (clip is not None and not clip > 0):
            raise ArgumentError(
                f"coefficient={coefficient}, clip={clip}: expected >= 0 and > 0, or null for no clip"
            )
        self.coefficient, self.clip = coefficient, clip

    def __call__(self, values: Float[Tensor, "B T"], batch: Experience) -> TokenLoss:
        """Loss of each token; the gradient flows through `values` alone."""
        assert batch.returns is not None, "experience of a run with a critic"
        assert batch.old_values is not None, "experience of a run with a critic"
        error = clipped_error = (values - batch.returns) ** 2
        if self.clip is not None:
            clipped = values.clamp(batch.old_values - self.clip, batch.old_values + self.clip)
            clipped_error = (clipped - batch.returns) ** 2
        metrics = {
            "train/value_loss": error.detach() / 2,
            "train/value_clip_fraction": (clipped_error > error).float(),
        }
        return TokenLoss(self.coefficient * torch.maximum(error, clipped_error) / 2, metrics)

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        assert scores.values is not None, "a run with a critic"
        return self(scores.values, batch)
