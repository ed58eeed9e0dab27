"""Low-rank adapters: a policy that trains few parameters, and its reference without them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.adapted_layers import adapted_layers, adapters_of, add_adapters, own_name
from grpo_pl.models.adapter_targets import find_targets
from grpo_pl.models.builder import ModelBuilder
from grpo_pl.models.language_model import CausalLM, LanguageModel, TokenLogprobs
from grpo_pl.system.refusal import ArgumentError, ConfigError, about, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@final
class LoRA(ModelBuilder):
    """A policy that trains low-rank adapters alone: W x + alpha / r * B A x.

    Hu et al. 2021, arXiv:2106.09685, eq. 3. B starts at zero, so training starts from the pretrained model.
    Adapters are float32, whatever the dtype of the frozen weights, and want about ten times the learning rate
    of a whole policy. Checkpoints hold the adapters alone; the engine and `export` get merged
    weights. The log says which kinds of layers are adapted, and which matrices are not.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        r: Rank of the adapters; each expert of a mixture has its own, and its gate and up projection, if they
            are one matrix, share one.
        alpha: Scale of the adapters, divided by `r`.
        dropout: 0: with dropout no two passes would agree and no ratio would be 1.
        target_modules: Layers that get an adapter: the ends of their names, or one regular expression that
            whole names match; "all-linear" is every linear layer of attention, MLPs and experts, also of
            experts that are one tensor, but no router, embedding, LM head or convolution, no layer whose
            weight the model reads without calling it (in Mamba's mixers), and none that shares its weight
            with other layers (Zamba's attention). Fused experts have the names of
            their tensors (`gate_up_proj`) or those in the checkpoint (`gate_proj` and `up_proj`), routers
            the names of their modules.
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
        if not target_modules:
            raise ArgumentError(
                f"target_modules={target_modules} names nothing to adapt: name layers or say all-linear"
            )
        if dropout != 0:
            raise ArgumentError(
                f"dropout={dropout} would let no two passes agree and no ratio be 1: set it to 0"
            )
        self.pretrained = pretrained
        self.r, self.alpha, self.target_modules = r, alpha, target_modules
        self.base = CausalLM(pretrained=pretrained, **causal_lm)
        self.head_dtype = self.base.head_dtype

    @override
    def settings_of_weights(self) -> dict[str, Any]:
        return {"alpha": self.alpha}

    @override
    def build(self, policy: nn.Module | None = None) -> LanguageModel:
        if find_spec("peft") is None:
            raise ConfigError("LoRA needs peft: pip install 'grpo_pl[lora]'", self)
        built = self.base.build()
        model = built.language_model
        with about(self):
            targets = find_targets(model, self.target_modules)
        add_adapters(model, targets.modules, targets.parameters, self.r, self.alpha)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        shared = targets.shared_kinds()
        log.info(
            "%s adapts %s; not %s%s: target_modules names what is adapted",
            name_of(self),
            ", ".join(targets.kinds()),
            ", ".join(left_out(model)) or "any other matrix",
            f" (several layers share one weight in {', '.join(shared)})" if shared else "",
        )
        return built


def left_out(model: nn.Module) -> list[str]:
    """The kinds of matrices that have no adapter: `embed_tokens`, `experts.down_proj`."""
    layers, kinds = adapted_layers(model), []
    for name, parameter in model.named_parameters():
        own = own_name(name, layers)
        if parameter.dim() > 1 and own is not None and not adapters_of(name, layers):
            *_, owner, leaf = own.split(".")
            kinds.append(owner if leaf == "weight" else f"{owner}.{leaf}")
    return list(dict.fromkeys(kinds))


@contextmanager
def adapters_off(model: "PreTrainedModel") -> Iterator[None]:
    """In the body, the model computes without its adapters."""
    layers = list(adapted_layers(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class WithoutAdapter(nn.Module):
    """The policy without its adapters, in the policy's own memory."""

    policy: LanguageModel

    def __init__(self, policy: LanguageModel) -> None:
        super().__init__()
        object.__setattr__(self, "policy", policy)  # unregistered: freezing the reference must not freeze it

    @override
    @torch.no_grad()  # a backward would compute checkpointed layers again, with adapters
    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        temperature: float,
        **options: Any,
    ) -> TokenLogprobs:
        """The policy's scores without its adapters, by the options of its forward; no gradient."""
        with adapters_off(self.policy.language_model):
            scores: TokenLogprobs = self.policy(token_ids, loss_mask, temperature, **options)
        return scores


@final
class AdapterOff(ModelBuilder):
    """A `LoRA` policy without its adapters as the reference: no second copy in memory."""

    has_own_weights = False

    @override
    def build(self, policy: nn.Module | None = None) -> WithoutAdapter:
        if not isinstance(policy, LanguageModel) or not adapted_layers(policy):
            raise ConfigError(
                "AdapterOff needs a policy with adapters: set model.policy to LoRA, or this to CausalLM", self
            )
        return WithoutAdapter(policy)
