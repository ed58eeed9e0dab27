"""Several critics in the place of one."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.builder import ModelBuilder
from grpo_pl.models.value_model import ValueHead
from grpo_pl.system.refusal import ArgumentError

_MULTIPLIER = 2654435761
"""Knuth's, of multiplicative hashing: neighbouring sums of tokens fall into unlike shares."""


def share_of(token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"], shares: int) -> Int[Tensor, "B"]:
    """The share of each response, by its tokens alone: the same in every pass, cut and order of rows."""
    sums = torch.where(loss_mask, token_ids, 0).sum(-1)
    return (sums * _MULTIPLIER % 2**32) // 2**16 % shares


class ValueEnsemble(nn.Module):
    """Critics whose mean is the value, and of which each learns from its own share of the responses."""

    def __init__(self, critics: list[nn.Module]) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)

    @override
    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        policy_hidden: Float[Tensor, "M H"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """The mean of the critics' values; where a gradient is wanted, that of the critic it belongs to."""
        if not torch.is_grad_enabled():
            values = [critic(token_ids, loss_mask, policy_hidden) for critic in self.critics]
            return torch.stack(values).mean(0)
        shares = share_of(token_ids, loss_mask, len(self.critics))
        out = torch.zeros(loss_mask.shape, device=loss_mask.device)
        for n, critic in enumerate(self.critics):
            out = out + self._own(critic, shares == n, token_ids, loss_mask, policy_hidden)
        return out

    def _own(
        self,
        critic: nn.Module,
        chosen: Bool[Tensor, "B"],
        token_ids: Int[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        policy_hidden: Float[Tensor, "M H"] | None,
    ) -> Float[Tensor, "B T"]:
        """The values of one critic on its rows, zero on others; it runs without any, as on other ranks."""
        read = chosen.clone()
        read[0] |= not bool(chosen.any())
        own = read[:, None] & loss_mask
        hidden = None if policy_hidden is None else policy_hidden[own[loss_mask]]
        values: Tensor = critic(token_ids[read], loss_mask[read], hidden)
        whole = values.new_zeros(loss_mask.shape).masked_scatter(own, values[loss_mask[read]])
        return whole * chosen[:, None]


@final
class CriticEnsemble(ModelBuilder):
    """Several critics, each of which learns from its own share of the responses; their mean is the value.

    AsyPPO (Liu et al. 2025, arXiv:2510.01656): small critics beside a large policy, kept unlike by their
    data, since they start alike. The paper divides the responses to each prompt evenly; here each response
    falls to a critic by a hash of its tokens, so shares are equal on average only, and the same in every
    update epoch. The clip of the value loss is around the mean, and all critics share one denominator,
    one clip of the gradient and `train/value_loss`, the error of each critic on its own share. Not built:
    the paper's use of the critics' disagreement (advantages left out where they agree, entropy where they do
    not). Scoring costs one forward of each critic, training as much as a single one.

    Args:
        critics: Two or more builders of critics, such as `ValueHead` of a smaller model of the policy's
            family.
        pretrained: The model of those critics that name none; where empty, the one of `--pretrained`.
    """

    def __init__(self, critics: list[ModelBuilder], pretrained: str = "") -> None:
        if len(critics) < 2:
            raise ArgumentError(
                f"critics: expected two or more, got {len(critics)}: list them, or set model.critic to "
                "ValueHead"
            )
        self.critics, self.pretrained = critics, pretrained

    @property
    @override
    def parts(self) -> Sequence[ModelBuilder]:
        return [self, *self.critics]

    @override
    def settings_of_weights(self) -> dict[str, Any]:
        return {"critics": len(self.critics)}

    @override
    def build(self, policy: nn.Module | None = None) -> ValueEnsemble:
        for critic in self.critics:
            if isinstance(critic, ValueHead) and not critic.pretrained:
                critic.pretrained = self.pretrained
        return ValueEnsemble([critic.build(policy) for critic in self.critics])
