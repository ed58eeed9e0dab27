"""Feedback as estimators and masks get it: made with few words, and given to an estimator."""

from collections.abc import Sequence
from typing import Any

import torch
from helpers.exact import F64, eighths
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.advantages import AdvantageEstimator, Credit
from grpo_pl.types import Feedback

REWARDS, IDS = [2.0, 1.0, 4.0, 3.0, 6.0], [9, 2, 9, 2, 9]
rewards_of_two_groups = st.lists(
    st.tuples(eighths, st.sampled_from([3, 8]), st.booleans()), min_size=2, max_size=10
)


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
    paid = torch.where(last, torch.tensor(rewards, dtype=F64)[:, None], 0.0)
    return feedback(paid, mask, torch.tensor(ids))


def assign(
    estimator: AdvantageEstimator,
    rewards: Sequence[float],
    group_ids: Sequence[int],
    scored: Sequence[bool] | None = None,
    lengths: Sequence[int] | None = None,
    dtype: torch.dtype = F64,
) -> tuple[Tensor, Credit]:
    """The advantage of each response, after a check that all its tokens and no others have it."""
    lengths = lengths or [1 + n % 3 for n in range(len(rewards))]
    mask, paid = torch.zeros(len(rewards), 6, dtype=torch.bool), torch.zeros(len(rewards), 6, dtype=dtype)
    for n, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        mask[n, 2 : 2 + length] = True
        paid[n, 1 + length] = reward
    known = torch.ones(len(rewards), dtype=torch.bool) if scored is None else torch.tensor(scored)
    same = {name: torch.zeros_like(paid) for name in ("old_logprobs", "ref_logprobs")}
    credit = estimator(feedback(paid, mask, torch.tensor(group_ids), scored=known, **same))
    first = credit.advantages[:, 2]
    assert torch.equal(credit.advantages, torch.where(mask, first[:, None], 0.0).to(dtype))
    assert credit.returns is None
    return first, credit


def trajectories() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values (zero outside of the mask), mask and group ids of four responses."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(7) >= 2) & (torch.arange(7) < torch.tensor([[7], [5], [3], [6]]))
    rewards, values = (
        torch.where(mask, torch.randn(4, 7, dtype=F64, generator=generator), 0.0) for _ in range(2)
    )
    return rewards, values, mask, torch.tensor([0, 0, 1, 1])
