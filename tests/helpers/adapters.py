"""Adapters as after a while of learning."""

import torch

from grpo_pl.models import LanguageModel


def with_random_adapters(policy: LanguageModel) -> LanguageModel:
    """The policy as after a while of learning: its adapters changed, all else as it was."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy
