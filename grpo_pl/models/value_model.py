"""The critic."""

from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.builder import ModelBuilder
from grpo_pl.models.language_model import at_each_token
from grpo_pl.models.loading import DType, load_language_model
from grpo_pl.models.packing import check_can_pack, checked_row_tokens, hidden_before_each_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ValueModel(nn.Module):
    """A language model's trunk with a scalar head: the expected reward before each token is chosen."""

    def __init__(self, trunk: "PreTrainedModel", hidden_size: int, row_tokens: int | None = None) -> None:
        super().__init__()
        self.trunk, self.row_tokens = trunk, row_tokens
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @override
    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        policy_hidden: Float[Tensor, "M H"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """The value before each masked token, in units of reward; zero elsewhere.

        `policy_hidden` is what the policy says of the same tokens, for critics on its trunk.
        """
        hidden = hidden_before_each_token(self.trunk, token_ids, loss_mask, self.row_tokens)
        return at_each_token(self.head(hidden).float()[:, 0], loss_mask)


@final
class ValueHead(ModelBuilder):
    """A critic: the pretrained trunk with a value head that starts at zero.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Of the weights.
        gradient_checkpointing: Recompute activations in the backward: less memory, about a third more time.
        attention: transformers' attention implementation ("sdpa", "flash_attention_2", ...); where null, its
        choice.
        row_tokens: Pack sequences into rows of this many tokens, as `CausalLM` does; where null, one row a
            sequence.
    """

    def __init__(
        self,
        pretrained: str = "",
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        attention: str | None = None,
        row_tokens: int | None = None,
    ) -> None:
        self.pretrained, self.dtype, self.gradient_checkpointing = pretrained, dtype, gradient_checkpointing
        self.attention, self.row_tokens = attention, checked_row_tokens(row_tokens)

    @override
    def build(self, policy: nn.Module | None = None) -> ValueModel:
        model = load_language_model(self.pretrained, self.dtype, self.attention)
        check_can_pack(model, self.row_tokens)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trunk = model.train().base_model
        value_model = ValueModel(trunk, int(model.config.get_text_config().hidden_size), self.row_tokens)
        return value_model.to(getattr(torch, self.dtype))
