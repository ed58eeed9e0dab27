"""Checks that a checkpoint matches this run's models and optimizer before it is loaded."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from grpo_pl.system.refusal import ConfigError

log = logging.getLogger(__name__)


def check_fits(checkpoint: Mapping[str, Any], own: Mapping[str, Tensor], configured: Any) -> None:
    """Refuse a checkpoint of other models or of another optimizer.

    Args:
        checkpoint: What Lightning has read.
        own: The weights of this run.
        configured: What `configure_optimizers` gives; None where nothing is trained.
    """
    check_weights_fit(checkpoint["state_dict"], own)
    if configured is not None:
        scheduled = isinstance(configured, dict)
        check_optimizer_fits(checkpoint, configured["optimizer"] if scheduled else configured, scheduled)


def check_weights_fit(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights of other models, by the first weight that differs."""
    for name in (name for name in own if name in stored):
        there, here = list(stored[name].shape), list(own[name].shape)
        if there != here:
            raise ConfigError(
                f"ckpt_path: the checkpoint is of another model: its {name} has the shape {there} instead of "
                f"{here}: name a checkpoint of this one, or the model that it is of"
            )
    for only_in, names in (("lacks", own.keys() - stored.keys()), ("also has", stored.keys() - own.keys())):
        if names:
            raise ConfigError(
                f"ckpt_path: the checkpoint is of another config: it {only_in} {min(names)}, one of "
                f"{len(names)}: set model.policy, model.critic, model.kl, model.reference_update as they were"
            )


def check_optimizer_fits(checkpoint: Mapping[str, Any], optimizer: Optimizer, scheduled: bool) -> None:
    """Refuse the state of another optimizer; log if a schedule begins or ends here."""
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


def layout(state: Mapping[str, Any]) -> list[tuple[int, set[str]]]:
    """The number of parameters and the settings of each parameter group."""
    groups = state["param_groups"]
    return [(len(group["params"]), group.keys() - {"params", "initial_lr"}) for group in groups]
