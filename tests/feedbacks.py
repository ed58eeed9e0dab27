"""Feedback as estimators and masks get it, with all that a test does not speak about left out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_pl.types import Feedback


def feedback(rewards: Tensor, mask: Tensor, ids: Tensor | None = None, **others: Any) -> Feedback:
    """One reward, without steps, of finished and scored responses to one prompt, if nothing else is said."""
    n = len(mask)
    plain = {
        "step_ends": torch.zeros_like(mask),
        "scored": torch.ones(n, dtype=torch.bool),
        "group_ids": torch.zeros(n, dtype=torch.long) if ids is None else ids,
        "truncated": torch.zeros(n, dtype=torch.bool),
        "by_name": {"reward": rewards.sum(-1)},
        "weights": {"reward": 1.0},
    }
    return Feedback(rewards=rewards, loss_mask=mask, **plain | others)


def outcomes(rewards: Sequence[float], ids: Sequence[int], lengths: Sequence[int]) -> Feedback:
    """Responses of the given lengths, each paid with its last token."""
    steps = torch.arange(1 + max(lengths))
    last = steps == torch.tensor(lengths)[:, None]
    mask = (steps > 0) & (steps <= torch.tensor(lengths)[:, None])
    paid = torch.where(last, torch.tensor(rewards, dtype=torch.float64)[:, None], 0.0)
    return feedback(paid, mask, torch.tensor(ids))
