"""Where a pretrained model lies: in a folder, in grpo_pl's cache, or on the hub."""

import os
from pathlib import Path

from grpo_pl.system.refusal import ArgumentError, ConfigError


def cached_model_folder(name: str) -> Path:
    """Where `tools/fetch_model.py` keeps a model of this hub name."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "grpo_pl" / "models" / name


def resolve_pretrained(pretrained: str) -> str:
    """The folder or hub name to load: a folder as it is, else grpo_pl's own model cache, else the hub's name.

    Refuses a folder without `config.json`, and what is neither a folder nor a possible name on the hub.
    """
    if not pretrained:
        raise ConfigError("no model is named: say --pretrained FOLDER_OR_HUB_NAME")
    if Path(pretrained).is_dir():
        if not (Path(pretrained) / "config.json").is_file():
            raise ArgumentError(
                f"pretrained={pretrained} is a folder without config.json: give a Hugging Face model folder"
            )
        return pretrained
    cached = cached_model_folder(pretrained)
    if (cached / "config.json").is_file():
        return str(cached)
    if pretrained.count("/") > 1 or pretrained.startswith((".", "/", "~")) or Path(pretrained).exists():
        raise ArgumentError(
            f"pretrained={pretrained} is not a folder: give a Hugging Face model folder or a hub name"
        )
    return pretrained
