"""Reads weights after their model has been sharded: no rank ever holds a whole copy."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from grpo_pl.system.refusal import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass
class Owed:
    """A model without weights, and the place of its weights."""

    model: "PreTrainedModel"
    folder: Path
    places: dict[str, tuple[nn.Module, str]]
    """Name in the checkpoint -> the module that holds the parameter, and its name there."""


@dataclass
class DeferredWeights:
    """Models that were built without weights."""

    owed: list[Owed] = field(default_factory=list)

    def defer(self, model: "PreTrainedModel", folder: Path) -> bool:
        """Register a model on the `meta` device; False if the folder lacks some of its parameters."""
        names = {name for name, parameter in model.named_parameters() if parameter.is_meta}
        if not names <= stored_names(folder):
            log.info("%s names its weights otherwise than the model: each rank reads it whole", folder)
            return False
        places = {}
        for name in names:
            owner, _, leaf = name.rpartition(".")
            places[name] = model.get_submodule(owner), leaf
        self.owed.append(Owed(model, folder, places))
        return True

    @torch.no_grad()
    def load(self, model: nn.Module, device: torch.device) -> None:
        """Move `model` to the device, and read this rank's part of its weights."""
        model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
        for owed in self.owed:
            tensors = {name: getattr(module, leaf).detach() for name, (module, leaf) in owed.places.items()}
            held = {name: t for name, t in tensors.items() if not t.is_meta}  # without an unused LM head
            reader = HuggingFaceStorageReader(str(owed.folder))
            state_dict_loader.load(held, storage_reader=reader, no_dist=True)
            make_buffers_again(owed.model)


def make_buffers_again(model: "PreTrainedModel") -> None:
    """Recompute buffers that no checkpoint holds, such as rotary frequencies, or refuse unknown ones."""
    for name, module in model.named_modules():
        unsaved: list[Tensor] = [
            buffer
            for leaf, buffer in module.named_buffers(recurse=False)
            if leaf in module._non_persistent_buffers_set
        ]
        for buffer in unsaved:
            buffer.fill_(torch.nan if buffer.is_floating_point() else -1)
        if unsaved:
            model._init_weights(module)
        if any(buffer.isnan().any() for buffer in unsaved):
            raise ArgumentError(
                f"pretrained: {type(model).__name__} does not say how to compute {name or 'its buffers'}, so "
                "it cannot be read shard by shard: set trainer.strategy to fsdp or ddp"
            )


@torch.no_grad()
def read_head(head: nn.Module, folder: Path) -> set[str]:
    """Give the head `score` its stored weights, else zeros; returns the names of those not stored."""
    head.to_empty(device="cpu")
    missing = {f"score.{leaf}" for leaf, _ in head.named_parameters()} - stored_names(folder)
    for leaf, parameter in head.named_parameters():
        parameter.zero_()
        for file in folder.glob("*.safetensors") if f"score.{leaf}" not in missing else ():
            with safe_open(file, framework="pt") as opened:
                if f"score.{leaf}" in opened.keys():  # noqa: SIM118 - not a dict
                    parameter.copy_(opened.get_tensor(f"score.{leaf}"))
    return missing


def stored_names(folder: Path) -> set[str]:
    """The names of the tensors in a folder's safetensors files."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names.update(opened.keys())
    return names


_deferred: ContextVar[DeferredWeights | None] = ContextVar("deferred", default=None)


@contextmanager
def deferred_weights() -> Iterator[DeferredWeights]:
    """In the body, pretrained models are built without weights if those can be read in parts."""
    token = _deferred.set(weights := DeferredWeights())
    try:
        yield weights
    finally:
        _deferred.reset(token)


def deferred() -> DeferredWeights | None:
    """The register of models without weights; None if models are read whole."""
    return _deferred.get()
