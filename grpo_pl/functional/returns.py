"""Rewards of tokens, and their returns."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def outcome_rewards(rewards: Float[Tensor, "N"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Put each sequence's reward on its last response token: an outcome is a process that pays at the end."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, -1).amax(-1, keepdim=True)
    return torch.where(mask & (steps == last), rewards[:, None], 0.0)


def generalized_advantages(
    rewards: Float[Tensor, "N T"],
    values: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    gamma: float,
    lam: float | Float[Tensor, "N"],
) -> Float[Tensor, "N T"]:
    """Generalised advantage estimation over the masked tokens.

    A_t = delta_t + gamma lam A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t (Schulman et al. 2016,
    arXiv:1506.02438, eq. 16), where t + 1 is the next *masked* token: tokens that the policy did not choose
    are stepped over. The value after the last token is 0, for truncated responses too (the token limit is
    part of the task). `lam` is one for all sequences, or one for each.
    """
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        chosen = mask[:, t]
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * next_advantage
        advantages[:, t] = torch.where(chosen, advantage, 0.0)
        next_advantage = torch.where(chosen, advantage, next_advantage)
        next_value = torch.where(chosen, values[:, t], next_value)
    return advantages
