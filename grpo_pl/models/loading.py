"""Loading pretrained models; the only importer of transformers."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn

from grpo_pl.models.deferred import deferred, read_head
from grpo_pl.models.folders import resolve_pretrained
from grpo_pl.models.generation import mend
from grpo_pl.models.tree_attention import TREE, tree_attention
from grpo_pl.system.precision import DType
from grpo_pl.system.refusal import ArgumentError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
VALUE_BIAS = "value_bias"
"""The entry of a critic's config.json with the bias of its head, which classifiers have not."""
RewardKind = Literal["outcome", "process"]
"""Whether a reward model scores whole responses or the steps of them."""
_shapes_alone = ContextVar("shapes_alone", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """In the body, models are built on the `meta` device from config.json alone: shapes, no numbers."""
    before = _shapes_alone.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _shapes_alone.reset(before)


GENERATION_FILE = "generation_config.json"
NO_CODE: Any = {"trust_remote_code": False}
"""For all loading: code that comes with a model never runs."""


@contextmanager
def loading(pretrained: str, part: str) -> Iterator[None]:
    """Turn any error of transformers in the body into one sentence about the model."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError),
        *(SafetensorError, StrictDataclassError, UnpicklingError),
    ) as error:
        reason = re.sub(r"<class '\S*?(\w+)'>", r"\1", " ".join(str(error).split())) or type(error).__name__
        if "trust_remote_code" in reason:
            raise ArgumentError(
                f"pretrained={pretrained} brings code of its own, which grpo_pl never runs: give a model of "
                "an architecture that transformers knows"
            ) from error
        if "ignore_mismatched_sizes" in reason:
            reason = "they have other shapes than its config.json says"
        raise ArgumentError(
            f"pretrained={pretrained} could not be loaded ({part}: {reason:.200}): give a complete Hugging "
            "Face model folder, or a hub name while the hub can be reached (tools/fetch_model.py fetches the "
            "demo model)"
        ) from error


def load_tokenizer(pretrained: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder or hub name."""
    from transformers import AutoTokenizer

    path = resolve_pretrained(pretrained)
    with loading(pretrained, "tokenizer"):
        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path, **NO_CODE))


def weights_folder(pretrained: str) -> Path:
    """The folder on this machine with the weights of a model folder or hub name."""
    path = resolve_pretrained(pretrained)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    with loading(pretrained, "weights"):
        return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json"]))


SIZES = "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"
"""Sizes that must be positive: transformers would build the model and fail in its first forward."""


def load_config(pretrained: str) -> "PretrainedConfig":
    """The configuration of a model folder or hub name."""
    from transformers import AutoConfig

    path = resolve_pretrained(pretrained)
    with loading(pretrained, "config.json"):
        config = cast("PretrainedConfig", AutoConfig.from_pretrained(path, **NO_CODE))
        for key in SIZES:
            if (size := getattr(config.get_text_config(), key, 1)) < 1:
                raise ValueError(f"{key} is {size}")
    return config


def context_length(pretrained: str) -> int:
    """The model's context: prompt and response together, in tokens."""
    return int(getattr(load_config(pretrained).get_text_config(), "max_position_embeddings", None) or 1 << 30)


def vocabulary_size(pretrained: str) -> int:
    """The number of tokens in the model's vocabulary."""
    return int(load_config(pretrained).get_text_config().vocab_size)


def load_generation_config(pretrained: str) -> "GenerationConfig | None":
    """The generation settings of a model folder or hub name; None if it has none."""
    from transformers import GenerationConfig

    path = resolve_pretrained(pretrained)
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        if (Path(path) / GENERATION_FILE).exists():
            with loading(pretrained, GENERATION_FILE):
                raise
        return None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ArgumentError(
            f"pretrained={pretrained}: transformers cannot use its {GENERATION_FILE} "
            f"({' '.join(str(error).split()):.200}): correct it there"
        ) from error


def mended_generation_config(pretrained: str) -> tuple["GenerationConfig | None", str]:
    """The generation settings as transformers saves them, and a sentence on what was changed, if anything."""
    config = load_generation_config(pretrained)
    if config is None or not (changes := mend(config)):
        return config, ""
    return config, (
        f"! pretrained={pretrained}: transformers does not save its {GENERATION_FILE} as it is; the exported "
        f"one has {changes}."
    )


def eos_token_ids(pretrained: str) -> set[int]:
    """The tokens that end a response, by the model's generation settings, else its configuration.

    Refuses one that the model does not know.
    """
    eos = (load_generation_config(pretrained) or load_config(pretrained)).eos_token_id
    tokens = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
    known = vocabulary_size(pretrained)
    for token in tokens:
        if not isinstance(token, int) or not 0 <= token < known:
            raise ArgumentError(
                f"pretrained={pretrained}: eos_token_id {token!r} of its generation_config.json or "
                f"config.json is none of the model's {known} tokens: correct it there"
            )
    return tokens


def sampling_defaults(pretrained: str) -> dict[str, float]:
    """The sampling parameters in the model's generation settings, such as `{"top_p": 0.8}`."""
    keys = "temperature", "top_p", "top_k", "min_p", "repetition_penalty"
    config = load_generation_config(pretrained)
    defaults = {} if config is None else config.to_diff_dict()
    return {key: float(defaults[key]) for key in keys if isinstance(defaults.get(key), int | float)}


def _load_config_without_dropout(pretrained: str) -> "PretrainedConfig":
    """The configuration with every dropout at 0: with it, no two passes would agree."""
    config = load_config(pretrained)
    for key, value in vars(config.get_text_config()).items():
        if ("dropout" in key or key.endswith(("pdrop", "layerdrop"))) and isinstance(value, float):
            setattr(config.get_text_config(), key, 0.0)
    return config


def load_language_model(pretrained: str, dtype: DType, attention: str | None = None) -> "PreTrainedModel":
    """A causal language model without dropout, so that two passes agree and the first ratio is 1."""
    from transformers import AutoModelForCausalLM

    config = _load_config_without_dropout(pretrained)
    return _load(AutoModelForCausalLM, pretrained, config, dtype, attention)[0]


def _load(
    auto: Any,
    pretrained: str,
    config: "PretrainedConfig",
    dtype: DType,
    attention: str | None,
    head: str = "",
) -> tuple["PreTrainedModel", bool]:
    """A model, and whether its `head` has no stored weights; on `meta` where weights are read later."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    arguments: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if attention not in (None, TREE):  # a tree comes once the model has been compared without
        arguments["attn_implementation"] = attention
    path = resolve_pretrained(pretrained)
    with loading(pretrained, "weights"):  # also names an architecture without such a head
        if _shapes_alone.get():
            return auto.from_config(config, **arguments), False
        if (later := deferred()) is not None:
            with torch.device("meta"):
                empty = auto.from_config(config, **arguments)
            folder = weights_folder(pretrained)
            missing = read_head(getattr(empty, head), folder) if head else set()
            if later.defer(empty, folder):
                return empty, bool(missing)
        loaded: Any = auto.from_pretrained(
            path, config=config, output_loading_info=True, **arguments, **NO_CODE
        )
    model, report = loaded
    check_complete(pretrained, report, head)
    return model, bool(report["missing_keys"])


def set_attention(model: "PreTrainedModel", name: str) -> None:
    """Give a model another attention: one of transformers', or the project's own."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(TREE, tree_attention)
    model.set_attn_implementation(name)


def dynamic_cache() -> tuple[Any, Any]:
    """The type of the key-value cache that most models make, and that of its layers."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return DynamicCache, DynamicLayer


def untrained_language_model(pretrained: str) -> "PreTrainedModel":
    """A model's architecture with random weights, and its generation settings, mended with a warning."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = cast("PreTrainedModel", AutoModelForCausalLM.from_config(load_config(pretrained)))
    settings, mended = mended_generation_config(pretrained)
    if settings is not None:
        model.generation_config = settings
    if mended:
        log.warning("%s", mended)
    return model


def untrained_classifier(pretrained: str) -> "PreTrainedModel":
    """A model's trunk with a head `score` of one label, with random weights: the form of reward models."""
    from transformers import AutoModelForSequenceClassification

    config = load_config(pretrained)
    config.num_labels = 1
    return cast("PreTrainedModel", AutoModelForSequenceClassification.from_config(config))


def check_complete(pretrained: str, report: dict[str, Any], head: str = "") -> None:
    """Refuse a checkpoint that lacks weights, which would be random, and log unused ones.

    `report` is the loading info of transformers; the weights of the module `head` may be missing.
    """
    missing = sorted(key for key in report["missing_keys"] if not head or not key.startswith(head))
    if missing:
        raise ArgumentError(
            f"pretrained={pretrained} lacks {len(missing)} of the weights that its config.json speaks of, "
            f"for instance {missing[0]}: give a folder where they belong together"
        )
    if unused := sorted(report["unexpected_keys"]):
        log.warning("pretrained=%s: %d weights have no use, as %s", pretrained, len(unused), unused[0])


def pretrained_models(model: nn.Module) -> list["PreTrainedModel"]:
    """The outermost models of transformers inside a model."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return [model]
    return [inner for child in model.children() for inner in pretrained_models(child)]


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers in their order: the units of compilation and sharding."""
    kinds = {kind for inner in pretrained_models(model) for kind in inner._no_split_modules or ()}
    return [module for module in model.modules() if type(module).__name__ in kinds]


def stored_parts(model: "PreTrainedModel") -> dict[str, tuple[str, ...]]:
    """The end of a fused weight's name -> the layers of each expert that a checkpoint stores instead."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    return {
        f".{one.target_patterns[0].lstrip('.')}": tuple(
            source.removesuffix(".weight").rpartition(".")[2] for source in one.source_patterns
        )
        for one in get_model_conversion_mapping(model)
        if isinstance(one, WeightConverter) and len(one.target_patterns) == 1
    }


def plain_linear_layers() -> tuple[type[nn.Module], ...]:
    """The linear layer of torch, and GPT-2's, which keeps its weight transposed."""
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D


def load_reward_model(
    pretrained: str, kind: RewardKind, dtype: DType, attention: str | None = None
) -> tuple["PreTrainedModel", bool]:
    """A causal model with a linear head `score`, without dropout, and whether that head is new to its task.

    Outcome models are sequence classifiers, process models are token classifiers, both with one label. The
    head is new, and random, for the checkpoint of a language model; a head of the other kind counts as new.

    Refuses more labels than one, and architectures whose head is not a linear layer on each token's state.
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    config = _load_config_without_dropout(pretrained)
    architecture = "".join(config.architectures or ())
    if "Classification" in architecture and config.num_labels != 1:
        raise ArgumentError(
            f"pretrained={pretrained} is a classifier with {config.num_labels} labels: give a reward model "
            "with one"
        )
    config.num_labels = 1
    auto, suffix = {
        "outcome": (AutoModelForSequenceClassification, "ForSequenceClassification"),
        "process": (AutoModelForTokenClassification, "ForTokenClassification"),
    }[kind]
    model, lacks_head = _load(auto, pretrained, config, dtype, attention, head="score")
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ArgumentError(
            f"pretrained={pretrained} loads as a {type(model).__name__}, which has no linear head `score` on "
            "the state of each token: give a model of another architecture, such as Llama or Qwen2"
        )
    return model, suffix not in architecture or lacks_head
