"""`grpo_pl export`: makes a Hugging Face folder, which transformers and vLLM load, from a checkpoint."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_pl.commands.options import Options
from grpo_pl.config.files import read_config
from grpo_pl.runs.layout import CONFIG_FILE
from grpo_pl.system.folders import check_folder
from grpo_pl.system.refusal import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = "Make a Hugging Face folder, for transformers and vLLM, from a checkpoint of a run."
Weights = dict[str, "Tensor"]
PREFIX = "policy.language_model."


def export(checkpoint: Path, out: Path, pretrained: str = "") -> Path:
    """Write the policy's weights with the base model's configuration, tokenizer and chat template.

    Raises:
        ConfigError: If the checkpoint holds no policy or does not fit the base model, or `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: name a new folder")
    check_folder("out", out)
    weights = policy_weights(checkpoint)
    pretrained = (
        pretrained or policy_arguments(checkpoint, "say --pretrained FOLDER_OR_HUB_NAME")["pretrained"]
    )
    if any(".lora_A." in name for name in weights):
        weights = merge_adapters(weights, pretrained, checkpoint)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        save(weights, pretrained, partial, checkpoint)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def policy_weights(checkpoint: Path) -> Weights:
    """The policy's parameters by their Hugging Face names."""
    from grpo_pl.runs.checkpoint_io import read_shards
    from grpo_pl.runs.manifest import is_sharded
    from grpo_pl.runs.safe_loading import UnreadableError, check_shards, read_data

    if not checkpoint.is_file() and not is_sharded(checkpoint):
        raise ConfigError(
            f"{checkpoint} is not a file: give a checkpoint such as runs/quickstart/checkpoints/last.ckpt"
        )
    try:
        if is_sharded(checkpoint):
            check_shards(checkpoint)
            content = read_shards(checkpoint, f"state_dict.{PREFIX}")
        else:
            content = read_data(checkpoint, mapped=True)
    except UnreadableError as error:
        raise ConfigError(f"{error.what}: give a checkpoint of `grpo_pl fit`") from error
    state = content.get("state_dict", {}) if isinstance(content, dict) else {}
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if not weights:
        raise ConfigError(f"{checkpoint} holds no policy: give a checkpoint of `grpo_pl fit`")
    return weights


def policy_arguments(checkpoint: Path, remedy: str) -> dict[str, Any]:
    """The arguments of the run's policy, from the run's config.yaml."""
    path = checkpoint.resolve().parent.parent / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"there is no {path} that describes the policy: {remedy}")
    return dict(read_config(str(path))["model"]["policy"]["init_args"])


def merge_adapters(weights: Weights, pretrained: str, checkpoint: Path) -> Weights:
    """The base model's weights with the checkpoint's LoRA adapters merged in."""
    from grpo_pl.models import LoRA
    from grpo_pl.models.full_weights import full_weights
    from grpo_pl.models.loading import load_language_model

    arguments = policy_arguments(
        checkpoint, "the adapters' scale is known there, leave it beside the checkpoint"
    )
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


def run(args: list[str]) -> None:
    """Export a checkpoint, and print the folder."""
    parser = Options("export", DESCRIPTION)
    parser.add_argument("checkpoint", type=Path, help="such as runs/quickstart/checkpoints/last.ckpt")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--pretrained", default="", help="base model; default: that of the run's config.yaml")
    options = parser.parse_args(args)
    try:
        print(export(options.checkpoint, options.out, options.pretrained))
    except ConfigError as error:
        raise ConfigError(f"export: {error}") from error
