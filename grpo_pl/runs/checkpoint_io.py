"""Writes checkpoints so that a kill leaves the old one, and reads those of any strategy."""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from typing_extensions import override

from grpo_pl.runs.manifest import SHARDED, Manifest, Part, is_sharded, manifest_path, whole_checkpoint
from grpo_pl.runs.safe_loading import SafePlanner, read_file, read_index
from grpo_pl.system.atomic_files import partial_of, replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a partial file beside the checkpoint's place and renames it: a kill leaves the old one.

    Lightning would hold the whole file in memory first, 1.6 GB for a 135 M policy with AdamW. Checksums are
    computed while writing, and compared before reading. Sharded checkpoints are read too, so that a run can
    move from many ranks to one.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        place = Path(path)
        with replacing(place) as file:
            hashing = HashingFile(file)
            try:
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]
            except RuntimeError as error:  # torch does not say why the write failed
                raise hashing.failure or error from None
            part = Part(hashing.bytes, hashing.sha256.hexdigest())
            file.flush()
            Manifest(checkpoint["global_step"], {"": part}).write(place)

    @override
    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        whole = whole_checkpoint(Path(path))
        if not is_sharded(whole):
            return read_file(whole)
        checkpoint: dict[str, Any] = torch.load(whole / SHARDED, weights_only=True)
        content = read_shards(whole)
        optimizers = [content[key] for key in sorted(content) if key.startswith("optimizer_")]
        states = [numbered(optimizer) for optimizer in optimizers]
        return checkpoint | {"state_dict": content["state_dict"], "optimizer_states": states}

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Rename the checkpoint before removing it, so that a kill leaves no damaged one."""
        place = Path(path)
        manifest, rubbish = manifest_path(place), partial_of(place)
        if place.exists():
            place.replace(rubbish)
            super().remove_checkpoint(rubbish)
        manifest.unlink(missing_ok=True)


class HashingFile:
    """A file written from beginning to end, which computes its checksum meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, content: memoryview) -> int:
        """Append bytes."""
        try:
            self.file.write(content)
        except OSError as error:
            self.failure = error
            raise
        self.sha256.update(content)
        self.bytes += len(content)
        return len(content)

    def flush(self) -> None:
        """Hand all bytes to the operating system."""
        self.file.flush()


def read_shards(folder: Path, prefix: str = "") -> dict[str, Any]:
    """The content of a sharded checkpoint, each tensor whole, as `{"state_dict": ..., "optimizer_0": ...}`.

    With a `prefix`, such as `state_dict.policy.`, only the entries that begin with it.
    """
    metadata = read_index(folder)
    wanted = {key: entry for key, entry in metadata.state_dict_metadata.items() if key.startswith(prefix)}
    flat: dict[str, Any] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        if isinstance(entry, TensorStorageMetadata)
        else None
        for key, entry in wanted.items()
    }
    planner = SafePlanner(flatten_state_dict=False)
    state_dict_loader.load(flat, storage_reader=FileSystemReader(folder), planner=planner, no_dist=True)
    whole: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = metadata.planner_data[key]
        place = whole
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return whole


def numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by parameter numbers instead of names, as unsharded optimizers keep it."""
    groups = [optimizer["param_groups"][i] for i in sorted(optimizer["param_groups"])]
    numbers = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {numbers[name]: state for name, state in optimizer["state"].items()},
        "param_groups": [group | {"params": [numbers[n] for n in group["params"]]} for group in groups],
    }
