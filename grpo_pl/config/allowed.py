"""Rejects configs with secrets, which the run's folder would keep, NaN or infinite numbers, or any code.

A config can name components, optimizers, schedulers, and what Lightning takes by class; functions by import
path alone, without arguments; nothing else, so that a config from anywhere runs no command.
"""

import inspect
import math
import os
import re
from collections.abc import Iterator
from pydoc import locate
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, Precision
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo_pl.system.refusal import ConfigError

NAMEABLE = (
    *(Optimizer, LRScheduler, Callback, Logger, Profiler, Strategy, Accelerator),
    *(Precision, ClusterEnvironment, CheckpointIO, LayerSync),
)
"""The classes beside those of grpo_pl whose implementations a config may name."""
SETTINGS_OF = "grpo_pl.", "torch.distributed.fsdp."
"""The packages whose classes it may all name."""
SECRET = re.compile(r"(?:^|_)(?:api_?key|(?:access|auth|api|hf)_token|password|secret)$", re.IGNORECASE)
HOLDS_SECRETS = re.compile(r"_(?:KEY|TOKEN|SECRET|PASSWORD)$")
LOGIN = re.compile(r"\w://[^/\s@]*:[^/\s@]*@")
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def check_values(config: Any) -> None:
    """Refuse values that must be neither built nor written into the run's folder."""
    keys = [name for name in os.environ if HOLDS_SECRETS.search(name)]
    secrets = {os.environ[name]: name for name in keys if len(os.environ[name]) >= 8}
    for key, value in entries(config):
        name = key.rpartition(".")[2]
        if name == "class_path":
            check_class(key.removesuffix(".class_path"), value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value}: expected a finite number")
        if not isinstance(value, str):
            continue
        if name == "api_key_variable" and not VARIABLE.fullmatch(value):
            raise ConfigError(
                f"{key} is not the name of an environment variable such as VLLM_API_KEY: export the key as "
                "one, and set it to that (what it is now is not shown: it may be the key)"
            )
        known = next((variable for secret, variable in secrets.items() if secret in value), None)
        if value and (SECRET.search(name) or LOGIN.search(value) or known):
            where = f" (that of the environment variable {known})" if known else ""
            raise ConfigError(
                f"{key} holds a secret{where}, which config.yaml in the run's folder would keep: take it out "
                "and export it as an environment variable"
            )


def check_class(key: str, path: str) -> None:
    """Refuse to build a class of a kind that no config is meant to name."""
    cls = locate(path)
    if inspect.isclass(cls) and (issubclass(cls, NAMEABLE) or cls.__module__.startswith(SETTINGS_OF)):
        return
    if inspect.isclass(cls) and any(base.__module__.startswith("grpo_pl.") for base in cls.__mro__):
        return  # a component of the user
    raise ConfigError(
        f"{key}={path} is nothing that a config can give settings to: name a component, an optimizer, a "
        "scheduler, a callback, a logger or a strategy; a function by its import path alone"
    )


def entries(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each plain value of a config with its key on the command line."""
    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, list | tuple):
        config = {str(i): value for i, value in enumerate(config)}
    if not isinstance(config, dict):
        yield key, config
        return
    for name, value in config.items():
        if not isinstance(name, str):
            raise ConfigError(f"{key}: expected a name, got {name!r}: put it in quotes")
        yield from entries(value, key if name == "init_args" else f"{key}.{name}" if key else name)
