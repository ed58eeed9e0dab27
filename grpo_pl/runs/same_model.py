"""Checks that a checkpoint matches this run's models and optimizer before it is loaded."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from grpo_pl.system.refusal import ArgumentError, ConfigError

log = logging.getLogger(__name__)


def check_fits(checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], configured: Any) -> None:
    """Refuse a checkpoint that does not fit this run's weights, or the optimizer that it has configured."""
    check_weights_fit(checkpoint["state_dict"], weights)
    if configured is not None:
        scheduled = isinstance(configured, dict)
        check_optimizer_fits(checkpoint, configured["optimizer"] if scheduled else configured, scheduled)


def check_weights_fit(stored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of other models, by the first weight that differs."""
    for name in (name for name in weights if name in stored):
        shape, expected = list(stored[name].shape), list(weights[name].shape)
        if shape != expected:
            raise ConfigError(
                f"ckpt_path: the checkpoint is of another model: its {name} has the shape {shape} instead of "
                f"{expected}: name a checkpoint of this one, or the model that it is of"
            )
    missing, extra = weights.keys() - stored.keys(), stored.keys() - weights.keys()
    for verb, names in (("lacks", missing), ("also has", extra)):
        if names:
            raise ConfigError(
                f"ckpt_path: the checkpoint is of another config: it {verb} {min(names)}, one of "
                f"{len(names)}: set model.policy, model.critic, model.kl, model.reference_update as they were"
            )


def check_optimizer_fits(checkpoint: Mapping[str, Any], optimizer: Optimizer, scheduled: bool) -> None:
    """Refuse the state of another optimizer; log a schedule that begins or ends with this run."""
    states = checkpoint.get("optimizer_states")
    if not states:
        raise ConfigError(
            "ckpt_path: the checkpoint holds no state of the optimizer, so nothing goes on from it: name "
            "one that was saved without checkpoint.save_weights_only"
        )
    if layout(states[0]) != layout(optimizer.state_dict()):
        raise ConfigError(
            f"ckpt_path: the checkpoint's optimizer is no {type(optimizer).__name__} over these parameters: "
            "set model.optimizer and what is trained as they were"
        )
    if bool(checkpoint.get("lr_schedulers")) != scheduled:
        log.warning(
            "ckpt_path: the checkpoint was made %s model.lr_scheduler", "without" if scheduled else "with"
        )


def check_settings(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse settings with which the weights of a checkpoint would mean something else, by the first one."""
    for name, value in now.items():
        if stored.get(name, value) != value:
            raise ArgumentError(
                f"{name}={value}: the weights in ckpt_path were trained with {stored[name]}, and would mean "
                f"something else with {value}: set it to {stored[name]}, or start anew with --resume never"
            )


def layout(state: Mapping[str, Any]) -> list[tuple[int, set[str]]]:
    """The number of parameters and the settings of each parameter group."""
    groups = state["param_groups"]
    return [(len(group["params"]), group.keys() - {"params", "initial_lr"}) for group in groups]
