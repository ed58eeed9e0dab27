"""Make a Hugging Face folder, which transformers and vLLM load, from a checkpoint of a run.

python tools/export_hf.py runs/quickstart/checkpoints/last.ckpt FOLDER [--pretrained FOLDER_OR_HUB_NAME]
"""

import argparse
import os
import pickle
import shutil
import sys
from pathlib import Path

import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout need not be installed

PREFIX = "policy.language_model."


def export(checkpoint: Path, out: Path, pretrained: str = "") -> Path:
    """Write the policy's weights with the base model's configuration, tokenizer and chat template.

    Raises:
        ValueError: If that cannot be done, in one sentence.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: name a new folder")
    weights = policy_weights(checkpoint)
    pretrained = pretrained or base_model(checkpoint)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        save(weights, pretrained, partial, checkpoint)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def policy_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The policy's parameters under their Hugging Face names."""
    if not checkpoint.is_file():
        raise ValueError(
            f"{checkpoint} is no file: give a checkpoint such as runs/quickstart/checkpoints/last.ckpt"
        )
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{checkpoint} is not a checkpoint that torch can read ({reason})") from error
    state = content.get("state_dict", {}) if isinstance(content, dict) else {}
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if not weights:
        raise ValueError(f"{checkpoint} holds no policy: give a checkpoint of `python -m grpo_pl fit`")
    return weights


def base_model(checkpoint: Path) -> str:
    """The folder or name of the model that the run began with, as the run's config.yaml says."""
    path = checkpoint.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        raise ValueError(f"there is no {path} that names the base model: say --pretrained FOLDER_OR_HUB_NAME")
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["policy"]["init_args"]["pretrained"])


def save(weights: dict[str, Tensor], pretrained: str, folder: Path, checkpoint: Path) -> None:
    """Put the weights into the base model's architecture and save it with everything around it."""
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    from grpo_pl.models.loading import load_config, load_tokenizer, resolve_pretrained

    logging.disable_progress_bar()
    misfit = f"{checkpoint} does not fit the base model {pretrained}"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(pretrained))
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        here, there = (tuple(some[name].shape) if name in some else "nothing" for some in (weights, own))
        if here != there:
            raise ValueError(f"{misfit} ({name} is {here}, expected {there}): say --pretrained")
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, weights[name]):
            raise ValueError(f"{misfit} (it ties {name} to another parameter): say --pretrained")
    model.config.dtype = next(iter(weights.values())).dtype
    source = Path(resolve_pretrained(pretrained))
    if not source.is_dir() or (source / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(source))
    model.save_pretrained(folder)
    load_tokenizer(pretrained).save_pretrained(folder)


def main() -> None:
    """Read the command line; a mistake ends in one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file of a run")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument(
        "--pretrained", default="", help="base model; where empty, the one in the run's config.yaml"
    )
    arguments = parser.parse_args()
    try:
        print(export(arguments.checkpoint, arguments.out, arguments.pretrained))
    except ValueError as error:
        parser.exit(2, f"export_hf: error: {error}\n")


if __name__ == "__main__":
    main()
