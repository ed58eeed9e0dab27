"""The models as builders, and their log-probabilities; the only importer of transformers."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]


# ---------------------------------------------------------------------------------------- finding and loading


def cached_model_folder(name: str) -> Path:
    """Where `tools/fetch_model.py` keeps a model of this hub name."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "grpo_pl" / "models" / name


def resolve_pretrained(pretrained: str) -> str:
    """The folder or hub name to load: a folder as it is, else grpo_pl's own model cache, else the hub's name.

    Raises:
        ValueError: If it is a folder without `config.json`, or neither a folder nor something that the hub
            could know.
    """
    if not pretrained:
        raise ValueError("no model is named: say --pretrained FOLDER_OR_HUB_NAME")
    if Path(pretrained).is_dir():
        if not (Path(pretrained) / "config.json").is_file():
            raise ValueError(
                f"pretrained={pretrained} is a folder without config.json: give a Hugging Face model folder"
            )
        return pretrained
    cached = cached_model_folder(pretrained)
    if (cached / "config.json").is_file():
        return str(cached)
    if pretrained.count("/") > 1 or pretrained.startswith((".", "/", "~")) or Path(pretrained).exists():
        raise ValueError(
            f"pretrained={pretrained} is no folder: give a Hugging Face model folder or a hub name"
        )
    return pretrained


def _unreachable(pretrained: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0][:200]
    return ValueError(
        f"pretrained={pretrained} could not be loaded ({reason}): give a complete Hugging Face model "
        f"folder, or a hub "
        "name while the hub can be reached (tools/fetch_model.py fetches the demo model)"
    )


def load_tokenizer(pretrained: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder or hub name."""
    from transformers import AutoTokenizer

    try:
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(resolve_pretrained(pretrained)))
    except OSError as error:
        raise _unreachable(pretrained, error) from error


def load_config(pretrained: str) -> "PretrainedConfig":
    """The configuration of a model folder or hub name."""
    from transformers import AutoConfig

    try:
        return cast("PretrainedConfig", AutoConfig.from_pretrained(resolve_pretrained(pretrained)))
    except OSError as error:
        raise _unreachable(pretrained, error) from error


def context_length(pretrained: str) -> int:
    """How many tokens, prompt and response together, the model can read."""
    text_config = load_config(pretrained).get_text_config()
    return int(getattr(text_config, "max_position_embeddings", None) or 1 << 30)


def eos_token_ids(pretrained: str) -> set[int]:
    """The tokens that end a response, by the model's generation settings, else its configuration."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(resolve_pretrained(pretrained)).eos_token_id
    except OSError:
        eos = load_config(pretrained).eos_token_id
    return set(eos if isinstance(eos, list) else [] if eos is None else [eos])


def load_language_model(pretrained: str, dtype: DType, attention: str | None = None) -> "PreTrainedModel":
    """A causal language model without dropout: with it, no two passes would agree and no ratio would be 1."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = load_config(pretrained)
    for key, value in vars(config.get_text_config()).items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float):
            setattr(config.get_text_config(), key, 0.0)
    arguments: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolve_pretrained(pretrained), config=config, dtype=getattr(torch, dtype), **arguments
        )
    except OSError as error:
        raise _unreachable(pretrained, error) from error
    return cast("PreTrainedModel", model)


# --------------------------------------------------------------------------------------------- forward passes


def chunked_logprobs(
    hidden: Float[Tensor, "M H"],
    targets: Int[Tensor, "M"],
    language_model: "PreTrainedModel",
    temperature: float,
    chunk_tokens: int,
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"] | None]:
    """Log-probability of each target and entropy of the distribution it was drawn from, in nats, float32.

    The LM head runs on `chunk_tokens` rows at a time and again in the backward, so at most `[chunk_tokens,
    V]` logits exist at once. The entropy is computed where no gradient is wanted, else it is None.
    """
    head = cast(nn.Module, language_model.get_output_embeddings())
    config = language_model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def distribution(h: Tensor) -> Tensor:
        logits: Tensor = head(h).float()
        if cap is not None:
            logits = cap * torch.tanh(logits * scale / cap) / temperature
        elif scale != temperature:
            logits = logits * (scale / temperature)
        return logits.log_softmax(-1)

    def chosen(h: Tensor, target: Tensor) -> Tensor:
        return distribution(h).gather(-1, target[:, None])[:, 0]

    pairs = zip(torch.split(hidden, chunk_tokens), torch.split(targets, chunk_tokens), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(chosen, h, target, use_reentrant=False) for h, target in pairs]), None
    logprobs, entropies = [], []
    for h, target in pairs:
        log_distribution = distribution(h)
        logprobs.append(log_distribution.gather(-1, target[:, None])[:, 0])
        entropies.append(-(log_distribution.exp() * log_distribution).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


class TokenLogprobs(NamedTuple):
    """What a language model says of given sequences; zero where the mask is False."""

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None
    """None where a gradient is wanted."""


def _before_each_token(hidden: Float[Tensor, "B T H"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "M H"]:
    """The state from which each masked token was chosen: the one shift of the project."""
    return hidden[:, :-1][mask[:, 1:]]


def _at_each_token(x: Float[Tensor, "M"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return x.new_zeros(mask.shape).masked_scatter(mask, x)


class LanguageModel(nn.Module):
    """A causal language model that answers with log-probabilities; its logits never leave it.

    Sequences are padded on the right and causal attention looks to the left, so no attention mask is needed.
    With `share_prompts` a prompt that several rows begin with is read once and its keys and values serve all
    of them, with gradients: the same numbers up to rounding, for P + G R tokens instead of G (P + R).
    """

    def __init__(
        self, language_model: "PreTrainedModel", chunk_tokens: int, share_prompts: bool = False
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.chunk_tokens, self.share_prompts = chunk_tokens, share_prompts

    @override
    def forward(
        self, token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"], temperature: float
    ) -> TokenLogprobs:
        """Log-probability (and entropy) of each masked token, at the temperature it was sampled with."""
        chosen = _before_each_token(self._hidden(token_ids, loss_mask), loss_mask)
        logprobs, entropy = chunked_logprobs(
            chosen, token_ids[loss_mask], self.language_model, temperature, self.chunk_tokens
        )
        return TokenLogprobs(
            _at_each_token(logprobs, loss_mask),
            None if entropy is None else _at_each_token(entropy, loss_mask),
        )

    def _hidden(
        self, token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        trunk = self.language_model.base_model
        shared = common_prompts(token_ids, loss_mask) if self.share_prompts else None
        if shared is None:
            return cast(Tensor, trunk(input_ids=token_ids, use_cache=False).last_hidden_state)
        prompts, owner = shared
        start = prompts.shape[1]
        read = trunk(input_ids=prompts, use_cache=True)
        cache = read.past_key_values
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[owner], layer.values[owner]
        responses = trunk(input_ids=token_ids[:, start:], past_key_values=cache, use_cache=True)
        return torch.cat([read.last_hidden_state[owner], responses.last_hidden_state], 1)


def common_prompts(
    token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"]
) -> tuple[Int[Tensor, "U P"], Int[Tensor, "B"]] | None:
    """The different beginnings of the rows, and which one each row has; None where nothing can be shared.

    A beginning is what all prompts of the batch have room for: the tokens before the earliest response.
    """
    start = int(loss_mask.any(0).int().argmax())
    prompts, owner = torch.unique(token_ids[:, :start], dim=0, return_inverse=True)
    return (prompts, owner) if 0 < len(prompts) < len(token_ids) else None


class ValueModel(nn.Module):
    """A language model's trunk with a scalar head: the expected reward before each token is chosen."""

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @override
    def forward(self, token_ids: Int[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The value before each masked token, in units of reward; zero elsewhere."""
        hidden = self.trunk(input_ids=token_ids, use_cache=False).last_hidden_state
        values = self.head(_before_each_token(hidden, loss_mask)).float()[:, 0]
        return _at_each_token(values, loss_mask)


# --------------------------------------------------------------------------------------------------- builders


class ModelBuilder(ABC):
    """Says how a model is made; made it is inside `configure_model`, where sharding can take hold of it.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
    """

    pretrained: str

    @abstractmethod
    def build(self) -> nn.Module:
        """A new model with the pretrained weights, on the CPU."""


@final
class CausalLM(ModelBuilder):
    """A pretrained causal language model: the policy, or a frozen reference.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Of the weights. Keep float32 for a policy: bfloat16 loses small updates; `trainer.precision:
            bf16-mixed` computes in bfloat16 all the same.
        gradient_checkpointing: Recompute activations in the backward: less memory, about a third more time.
        chunk_tokens: Rows of logits that exist at once.
        attention: transformers' attention implementation ("sdpa", "flash_attention_2", ...); where null, its
            choice.
        share_prompts: Read a prompt that several rows of a micro-batch begin with once. Pays where
            `data.keep_groups` keeps the responses to a prompt together; for models whose cache holds plain
            keys and values.
    """

    def __init__(
        self,
        pretrained: str = "",
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        chunk_tokens: int = 256,
        attention: str | None = None,
        share_prompts: bool = False,
    ) -> None:
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens={chunk_tokens}: expected 1 or more")
        if share_prompts and gradient_checkpointing:
            raise ValueError(
                "share_prompts needs the cache that gradient_checkpointing turns off: set one of them false"
            )
        self.share_prompts = share_prompts
        self.pretrained, self.dtype, self.attention = pretrained, dtype, attention
        self.gradient_checkpointing, self.chunk_tokens = gradient_checkpointing, chunk_tokens

    @override
    def build(self) -> LanguageModel:
        model = load_language_model(self.pretrained, self.dtype, self.attention)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return LanguageModel(model.train(), self.chunk_tokens, self.share_prompts)


@final
class ValueHead(ModelBuilder):
    """A critic: the pretrained trunk with a value head that starts at zero.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Of the weights.
        gradient_checkpointing: Recompute activations in the backward: less memory, about a third more time.
    """

    def __init__(
        self, pretrained: str = "", dtype: DType = "float32", gradient_checkpointing: bool = False
    ) -> None:
        self.pretrained, self.dtype, self.gradient_checkpointing = pretrained, dtype, gradient_checkpointing

    @override
    def build(self) -> ValueModel:
        model = load_language_model(self.pretrained, self.dtype)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trunk = model.train().base_model
        value_model = ValueModel(trunk, int(model.config.get_text_config().hidden_size))
        return value_model.to(getattr(torch, self.dtype))
