"""The policy and the reference: log-probabilities of response tokens, without logits of a whole batch."""

from typing import TYPE_CHECKING, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.builder import ModelBuilder
from grpo_pl.models.candidates import candidate_logprobs, top_logprobs
from grpo_pl.models.heads import Head, HeadDType, HeadKind, LayerHead, compute_head_in, trunk_of
from grpo_pl.models.loading import load_language_model, transformer_blocks
from grpo_pl.models.logprobs import Entropy, chunked_logprobs
from grpo_pl.models.own_forward import fitting_head, state_size
from grpo_pl.models.packing import hidden_before_each_token
from grpo_pl.models.teacher import Teacher, lasting, taught_logprobs
from grpo_pl.system.precision import DType
from grpo_pl.system.refusal import about, check_at_least

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenLogprobs(NamedTuple):
    """A language model's scores of given sequences; zero where the mask is False."""

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None
    """None if not requested."""
    hidden: Float[Tensor, "M H"]
    """The state from which each masked token was chosen, for heads on the policy's trunk."""
    candidates: Float[Tensor, "B T K"] | None = None
    """The log-probabilities of the candidates; None without candidates."""
    candidate_ids: Int[Tensor, "B T K"] | None = None
    """The candidates where the model itself has named them (`top_k`)."""
    head: Head | None = None
    """The way from the states to the logits, for use after the forward; None if not requested."""
    divergence: Float[Tensor, "B T"] | None = None
    """The distance from the teacher; None without one."""
    reverse_kl: Float[Tensor, "B T"] | None = None
    """KL(this model || teacher), without gradient; None without a teacher."""


def at_each_token(x: Num[Tensor, "M *K"], mask: Bool[Tensor, "B T"]) -> Num[Tensor, "B T *K"]:
    """Put the values of masked tokens back in their places; zero elsewhere."""
    shape = (*mask.shape, *x.shape[1:])
    return x.new_zeros(shape).masked_scatter(mask.view(*mask.shape, *[1] * (x.ndim - 1)), x)


class LanguageModel(nn.Module):
    """A causal language model that answers with log-probabilities; its logits never leave it."""

    def __init__(
        self,
        language_model: "PreTrainedModel",
        chunk_tokens: int,
        head: HeadKind = LayerHead,
        state_size: int = 0,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.chunk_tokens, self._head = chunk_tokens, head
        self.state_size = state_size
        """The width of the states; 0 if no head on them is meant."""
        self.padding = 0.0
        """The share of padding in the last forward's positions."""

    @property
    def head(self) -> Head:
        """The way from the states to the logits."""
        return self._head.of(self.language_model)

    @override
    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        temperature: float,
        entropy: Entropy | None = None,
        candidates: Int[Tensor, "B T K"] | None = None,
        renormalized: bool = False,
        top_k: int = 0,
        teacher: Teacher | None = None,
        teaches: bool = False,
    ) -> TokenLogprobs:
        """Log-probability (and entropy) of each masked token, at the temperature it was sampled with.

        With `candidates`, theirs too; with `renormalized`, of the distribution over them alone. With `top_k`,
        those of the most probable tokens, without gradient. With a `teacher`, the distance from it. A model
        that `teaches` gives its states and its head alone; its log-probabilities are zero.
        """
        trunk = trunk_of(self.language_model)
        states = hidden_before_each_token(trunk, token_ids, loss_mask)
        chosen, self.padding = states.of_each(states.hidden), states.padding
        if teaches:
            zeros = torch.zeros(loss_mask.shape, device=chosen.device)
            return TokenLogprobs(zeros, None, chosen, head=lasting(self.head, self))
        given = chosen, token_ids[loss_mask], self.head, temperature, self.chunk_tokens
        if top_k:
            each, ids, others = (at_each_token(x, loss_mask) for x in top_logprobs(*given, top_k))
            return TokenLogprobs(each, None, chosen, others, ids)
        if teacher is not None:
            taught = taught_logprobs(*given, entropy, teacher)
            each, spread, far, apart = (at_each_token(column, loss_mask) for column in taught)
            of_entropy = spread if entropy else None
            return TokenLogprobs(each, of_entropy, chosen, divergence=far, reverse_kl=apart)
        if candidates is not None:
            arguments = chosen, token_ids[loss_mask], candidates[loss_mask], self.head, temperature
            scores = candidate_logprobs(*arguments, self.chunk_tokens, entropy, renormalized)
            each, spread, others = (at_each_token(column, loss_mask) for column in scores)
            return TokenLogprobs(each, spread if entropy else None, chosen, others)
        of_states = states.hidden, states.tokens, self.head, temperature, self.chunk_tokens
        logprobs, entropies = chunked_logprobs(*of_states, entropy)
        return TokenLogprobs(
            at_each_token(states.of_each(logprobs), loss_mask),
            None if entropies is None else at_each_token(states.of_each(entropies), loss_mask),
            chosen,
        )


@final
class CausalLM(ModelBuilder):
    """A pretrained causal language model: the policy, or a frozen reference.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Type of the weights. Of a policy in bfloat16 the optimizer keeps float32 masters, and gradients
            have 16 bits; with float32 and `trainer.precision: bf16-mixed` products are in bfloat16 too.
        gradient_checkpointing: Recompute activations in the backward: less memory, about a third more time.
        chunk_tokens: Rows of logits that exist at once, in the precision of products.
        attention: "tree" reads a micro-batch as one row without padding, and what sequences begin with once
            for all that share it: prompts, and the beginnings of responses (`data.keep_groups` keeps groups
            together). "sdpa", "eager" and other implementations of transformers read padded rows, a sequence
            each: the same numbers up to rounding. Null for a tree if the model can, else transformers'
            choice.
        compile: Compile each block of the model with this backend of `torch.compile`: a slow start, then
            faster steps, above all on a GPU; the same numbers up to rounding. Null for none.
        head_dtype: The type in which the LM head multiplies: float32 spares the logits bfloat16's rounding,
            at a cost in time. Null for that of the other layers. `--head_dtype` sets it for all models and
            the engine, which need the same.
    """

    def __init__(
        self,
        pretrained: str = "",
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        chunk_tokens: int = 512,
        attention: str | None = None,
        compile: Literal["inductor", "cudagraphs", "aot_eager"] | None = None,
        head_dtype: HeadDType = None,
    ) -> None:
        check_at_least(1, chunk_tokens=chunk_tokens)
        self.pretrained, self.dtype, self.attention = pretrained, dtype, attention
        self.gradient_checkpointing, self.compile = gradient_checkpointing, compile
        self.head_dtype = head_dtype
        self.chunk_tokens = chunk_tokens

    @override
    def build(self, policy: nn.Module | None = None) -> LanguageModel:
        with about(self):
            model = load_language_model(self.pretrained, self.dtype, self.attention)
            compute_head_in(self.head_dtype, model)
            head = fitting_head(model.train(), self.pretrained, self.attention)
            width = state_size(model, self.pretrained)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.compile is not None:
            for block in transformer_blocks(model):
                block.compile(backend=self.compile, dynamic=True)
        return LanguageModel(model, self.chunk_tokens, head, width)
