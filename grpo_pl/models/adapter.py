"""Low-rank adapters: a policy that trains few parameters, and its reference without them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.builder import ModelBuilder
from grpo_pl.models.language_model import CausalLM, LanguageModel, TokenLogprobs
from grpo_pl.system.refusal import ArgumentError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@final
class LoRA(ModelBuilder):
    """A policy that trains low-rank adapters alone: W x + alpha / r * B A x.

    Hu et al. 2021, arXiv:2106.09685, eq. 3. B starts at zero, so training starts from the pretrained model.
    Adapters are float32, whatever the dtype of the frozen weights, and want about ten times the learning rate
    of a whole policy. Checkpoints hold the adapters alone; the engine and `export` get merged
    weights.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        r: Rank of the adapters.
        alpha: Scale of the adapters, divided by `r`.
        dropout: 0: with dropout no two passes would agree and no ratio would be 1.
        target_modules: Layers that get an adapter: the ends of their names, or one regular expression that
            whole names match; "all-linear" is every linear layer but the LM head.
    """

    def __init__(
        self,
        pretrained: str = "",
        r: int = 16,
        alpha: int = 32,
        dropout: float = 0.0,
        target_modules: str | list[str] = "all-linear",
        **causal_lm: Any,
    ) -> None:
        if r < 1:
            raise ArgumentError(f"r={r}: expected a rank of 1 or more")
        if alpha <= 0:
            raise ArgumentError(f"alpha={alpha}: expected more than 0")
        if dropout != 0:
            raise ArgumentError(
                f"dropout={dropout} would let no two passes agree and no ratio be 1: set it to 0"
            )
        self.r, self.alpha, self.target_modules = r, alpha, target_modules
        self.base = CausalLM(pretrained=pretrained, **causal_lm)

    @override
    def build(self, policy: nn.Module | None = None) -> LanguageModel:
        if find_spec("peft") is None:
            raise ConfigError("LoRA needs peft: pip install 'grpo_pl[lora]'", self)
        from peft import LoraConfig

        built = self.base.build()
        model = built.language_model
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=self.target_modules)
        try:
            model.add_adapter(config)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0].split(". ")[0]
            raise ArgumentError(
                f"target_modules={self.target_modules} cannot get an adapter ({reason}): "
                "name linear layers of the model, or say all-linear",
                self,
            ) from error
        self._check_ends(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return built

    def _check_ends(self, model: "PreTrainedModel") -> None:
        """Refuse adapters of embedding and LM head, which may share a weight that no merge can split."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(isinstance(end, BaseTunerLayer) for end in ends):
            raise ArgumentError(
                f"target_modules={self.target_modules} takes in the embedding or the LM "
                "head: name layers between them, or say all-linear",
                self,
            )


@contextmanager
def adapters_off(model: "PreTrainedModel") -> Iterator[None]:
    """In the body, the model computes without its adapters."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


class WithoutAdapter(nn.Module):
    """The policy without its adapters, in the policy's own memory."""

    policy: LanguageModel

    def __init__(self, policy: LanguageModel) -> None:
        super().__init__()
        object.__setattr__(self, "policy", policy)  # unregistered: freezing the reference must not freeze it

    @override
    @torch.no_grad()  # a backward would compute checkpointed layers again, with adapters
    def forward(
        self, token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"], temperature: float
    ) -> TokenLogprobs:
        """The policy's scores without its adapters; no gradient."""
        with adapters_off(self.policy.language_model):
            scores: TokenLogprobs = self.policy(token_ids, loss_mask, temperature)
        return scores


@final
class AdapterOff(ModelBuilder):
    """A `LoRA` policy without its adapters as the reference: no second copy in memory."""

    has_own_weights = False

    @override
    def build(self, policy: nn.Module | None = None) -> WithoutAdapter:
        if not isinstance(policy, LanguageModel) or not policy.language_model._hf_peft_config_loaded:
            raise ConfigError(
                "AdapterOff needs a policy with adapters: set model.policy to LoRA, or this to CausalLM", self
            )
        return WithoutAdapter(policy)
