"""`grpo_pl export`: makes a Hugging Face folder, which transformers and vLLM load, from a checkpoint."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grpo_pl.commands.options import Options
from grpo_pl.config.files import read_config
from grpo_pl.runs.layout import CONFIG_FILE
from grpo_pl.system.folders import check_folder
from grpo_pl.system.refusal import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = "Make a Hugging Face folder, for transformers and vLLM, from a checkpoint of a run."
Weights = dict[str, "Tensor"]
Role = Literal["policy", "critic"]
PREFIXES: dict[Role, str] = {"policy": "policy.language_model.", "critic": "critic."}


def export(checkpoint: Path, out: Path, pretrained: str = "", model: Role = "policy") -> Path:
    """Write a model's weights with the base model's configuration, tokenizer and chat template.

    A critic becomes a sequence classifier with one label, and its head's bias an entry of its configuration:
    a folder for `model.critic.pretrained`.

    Raises:
        ConfigError: If the checkpoint has no such model, it does not fit the base model, or `out` is not
            empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: name a new folder")
    check_folder("out", out)
    weights = model_weights(checkpoint, model)
    remedy = "say --pretrained FOLDER_OR_HUB_NAME"
    pretrained = pretrained or model_arguments(checkpoint, model, remedy)["pretrained"]
    if any(".lora_A." in name for name in weights):
        weights = merge_adapters(weights, pretrained, checkpoint)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        (save_critic if model == "critic" else save)(weights, pretrained, partial, checkpoint)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def model_weights(checkpoint: Path, model: Role = "policy") -> Weights:
    """The policy's parameters by their Hugging Face names, or those of the critic's trunk and head."""
    from grpo_pl.runs.checkpoint_io import read_shards
    from grpo_pl.runs.manifest import is_sharded
    from grpo_pl.runs.safe_loading import UnreadableError, check_shards, read_data

    prefix = PREFIXES[model]
    if not checkpoint.is_file() and not is_sharded(checkpoint):
        raise ConfigError(
            f"{checkpoint} is not a file: give a checkpoint such as runs/quickstart/checkpoints/last.ckpt"
        )
    try:
        if is_sharded(checkpoint):
            check_shards(checkpoint)
            content = read_shards(checkpoint, f"state_dict.{prefix}")
        else:
            content = read_data(checkpoint, mapped=True)
    except UnreadableError as error:
        raise ConfigError(f"{error.what}: give a checkpoint of `grpo_pl fit`") from error
    state = content.get("state_dict", {}) if isinstance(content, dict) else {}
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not weights:
        run = "`grpo_pl fit`" + (" with model.critic ValueHead" if model == "critic" else "")
        raise ConfigError(f"{checkpoint} holds no {model}: give a checkpoint of {run}")
    return weights


def model_arguments(checkpoint: Path, model: Role, remedy: str) -> dict[str, Any]:
    """The arguments of the run's policy or critic, from the run's config.yaml."""
    path = checkpoint.resolve().parent.parent / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"there is no {path} that describes the {model}: {remedy}")
    return {"pretrained": ""} | dict(read_config(str(path))["model"][model]["init_args"])


def merge_adapters(weights: Weights, pretrained: str, checkpoint: Path) -> Weights:
    """The base model's weights with the checkpoint's LoRA adapters merged in."""
    from grpo_pl.models import LoRA
    from grpo_pl.models.full_weights import full_weights
    from grpo_pl.models.loading import load_language_model

    remedy = "the adapters' scale is known there, leave it beside the checkpoint"
    arguments = model_arguments(checkpoint, "policy", remedy)
    adapted = LoRA(**arguments | {"pretrained": pretrained}).build().language_model
    adapters: Weights = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    check_fit(weights, adapters, pretrained, checkpoint)
    adapted.load_state_dict(adapted.state_dict() | weights)
    plain = load_language_model(pretrained, arguments["dtype"])
    merged = dict(full_weights(adapted))
    assert merged.keys() == {name for name, _ in plain.named_parameters()}
    plain.load_state_dict(plain.state_dict() | merged)
    return plain.state_dict()


def misfit(reason: str, pretrained: str, checkpoint: Path) -> ConfigError:
    """The refusal of a base model that the checkpoint was not trained from."""
    return ConfigError(f"{checkpoint} does not fit the base model {pretrained} ({reason}): say --pretrained")


def check_fit(weights: Weights, expected: Weights, pretrained: str, checkpoint: Path) -> None:
    """Refuse weights whose names or shapes differ from the model's."""
    for name in sorted(expected.keys() | weights.keys()):
        got, needed = (tuple(w[name].shape) if name in w else "nothing" for w in (weights, expected))
        if got != needed:
            raise misfit(f"{name} is {got}, expected {needed}", pretrained, checkpoint)


def save(weights: Weights, pretrained: str, folder: Path, checkpoint: Path) -> None:
    """Save the weights in the base model's architecture, with its tokenizer and configuration."""
    import torch

    from grpo_pl.models.loading import load_tokenizer, untrained_language_model

    with torch.device("meta"):
        model = untrained_language_model(pretrained)
    check_fit(weights, model.state_dict(), pretrained, checkpoint)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, weights[name]):
            raise misfit(f"it ties {name} to another parameter", pretrained, checkpoint)
    model.config.dtype = next(iter(weights.values())).dtype
    model.save_pretrained(folder)
    load_tokenizer(pretrained).save_pretrained(folder)


def save_critic(weights: Weights, pretrained: str, folder: Path, checkpoint: Path) -> None:
    """Save a critic's trunk and head as a sequence classifier on the base model's architecture."""
    import torch

    from grpo_pl.models.loading import VALUE_BIAS, load_tokenizer, untrained_classifier

    if any(name.startswith("critics.") for name in weights):
        raise ConfigError(f"{checkpoint} holds several critics: export one of model.critic ValueHead")
    if "head.weight" not in weights or len(weights) == 2:
        raise ConfigError(
            f"the critic of {checkpoint} has no trunk of its own: export one of model.critic ValueHead"
        )
    with torch.device("meta"):
        model = untrained_classifier(pretrained)
    trunk = f"{model.base_model_prefix}."
    named = {name.replace("trunk.", trunk, 1): w for name, w in weights.items() if name.startswith("trunk.")}
    named["score.weight"] = weights["head.weight"]
    check_fit(named, model.state_dict(), pretrained, checkpoint)
    model.load_state_dict(named, assign=True)
    model.config.dtype = weights["head.weight"].dtype
    setattr(model.config, VALUE_BIAS, float(weights["head.bias"]))
    model.save_pretrained(folder)
    load_tokenizer(pretrained).save_pretrained(folder)


def run(args: list[str]) -> None:
    """Export a checkpoint, and print the folder."""
    parser = Options("export", DESCRIPTION)
    parser.add_argument("checkpoint", type=Path, help="such as runs/quickstart/checkpoints/last.ckpt")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--pretrained", default="", help="base model; default: that of the run's config.yaml")
    parser.add_argument("--model", default="policy", choices=PREFIXES, help="which one; default: policy")
    options = parser.parse_args(args)
    try:
        print(export(options.checkpoint, options.out, options.pretrained, options.model))
    except ConfigError as error:
        raise ConfigError(f"export: {error}") from error
