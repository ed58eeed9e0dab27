"""The critics: the expected reward before each token is chosen."""

from typing import TYPE_CHECKING, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.builder import ModelBuilder
from grpo_pl.models.heads import float32_scores, trunk_of
from grpo_pl.models.language_model import LanguageModel, at_each_token
from grpo_pl.models.loading import VALUE_BIAS, load_config, load_language_model, load_reward_model
from grpo_pl.models.own_forward import check_states, state_size
from grpo_pl.models.packing import hidden_before_each_token
from grpo_pl.system.precision import DType
from grpo_pl.system.refusal import about

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def zero_head(hidden_size: int) -> nn.Linear:
    """A scalar head that starts at zero."""
    head = nn.Linear(hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class ValueModel(nn.Module):
    """A trunk of its own with a scalar head."""

    def __init__(self, trunk: "PreTrainedModel", hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = zero_head(hidden_size)

    @override
    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        policy_hidden: Float[Tensor, "M H"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """The value before each masked token, in units of reward; zero elsewhere.

        `policy_hidden`, the policy's states of these tokens, is for critics on its trunk.
        """
        states = hidden_before_each_token(self.trunk, token_ids, loss_mask)
        return at_each_token(states.of_each(float32_scores(self.head, states.hidden)), loss_mask)


@final
class ValueHead(ModelBuilder):
    """A critic with a trunk of its own, from a language model or from a reward model.

    On a language model the value head starts at zero. A reward model (a sequence classifier with one label,
    by the architecture in its config.json) gives its trunk and its head: the first values are its scores of
    the text so far, as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, appendix C), with a bias of 0.
    A critic that another run has trained (`grpo_pl export --model critic`) is such a folder with its bias,
    and goes on with the values that it had.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Type of the weights.
        gradient_checkpointing: Recompute activations in the backward: less memory, about a third more time.
        attention: As in `CausalLM`.
    """

    def __init__(
        self,
        pretrained: str = "",
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        attention: str | None = None,
    ) -> None:
        self.pretrained, self.dtype, self.gradient_checkpointing = pretrained, dtype, gradient_checkpointing
        self.attention = attention

    @override
    def build(self, policy: nn.Module | None = None) -> ValueModel:
        with about(self):
            model, score = self._load()
            check_states(model.train(), self.pretrained, self.attention)
            width = state_size(model, self.pretrained) if score is None else score.in_features
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        value_model = ValueModel(trunk_of(model), width)
        if score is not None:
            value_model.head.weight.data.copy_(score.weight)
            nn.init.constant_(value_model.head.bias, getattr(model.config, VALUE_BIAS, 0.0))
        return value_model.to(getattr(torch, self.dtype))

    def _load(self) -> tuple["PreTrainedModel", nn.Linear | None]:
        """The model, and its score head if it is a reward model."""
        architectures = load_config(self.pretrained).architectures or ()
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            return load_language_model(self.pretrained, self.dtype, self.attention), None
        model, _ = load_reward_model(self.pretrained, "outcome", self.dtype, self.attention)
        return model, cast(nn.Linear, model.score)


class ValueOnTrunk(nn.Module):
    """A scalar head on the policy's states."""

    def __init__(self, hidden_size: int, detach: bool) -> None:
        super().__init__()
        self.head, self.detach = zero_head(hidden_size), detach

    @override
    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        policy_hidden: Float[Tensor, "M H"],
    ) -> Float[Tensor, "B T"]:
        """The value before each masked token, in units of reward; zero elsewhere."""
        hidden = policy_hidden.detach() if self.detach else policy_hidden
        return at_each_token(float32_scores(self.head, hidden), loss_mask)


@final
class TrunkValueHead(ModelBuilder):
    """A critic that is one linear layer on the policy's own states: no second trunk in memory.

    The head starts at zero. While `model.critic_warmup` lasts, it alone learns, whatever `detach` says.

    Args:
        detach: Whether the value loss stops at the head; else it shapes the policy's trunk too.
    """

    def __init__(self, detach: bool = True) -> None:
        self.detach = detach

    @override
    def build(self, policy: nn.Module | None = None) -> ValueOnTrunk:
        assert isinstance(policy, LanguageModel), "configure_model builds the policy first"
        return ValueOnTrunk(policy.state_size, self.detach)
