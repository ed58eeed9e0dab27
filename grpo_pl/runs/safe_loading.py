"""Reads checkpoints from anywhere without running code in them: data and tensors alone."""

import io
import pickle
import re
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.distributed.checkpoint.planner import ReadItem
from typing_extensions import override

from grpo_pl.runs.manifest import SHARDED, is_sharded
from grpo_pl.system.refusal import ConfigError

INDEX = ".metadata"
"""Torch's index of a sharded checkpoint, a pickle: which file holds what."""
OF_AN_INDEX = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties"),
        *("ChunkStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}
"""The classes of an index, by module."""
OF_A_RUN = {"loops", "pytorch-lightning_version", "state_dict"}
"""Keys that every single-file checkpoint has."""
NO_DATA = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)
"""Errors of unpickling a file that is damaged, of another format, or holds more than data."""


class UnreadableError(ConfigError):
    """The refusal of a checkpoint, with the reason in words that name no library's internals.

    Args:
        path: The checkpoint.
        reason: An error, or what is wrong with it.
    """

    def __init__(self, path: Path, reason: object) -> None:
        words = " ".join(str(reason).split()) or type(reason).__name__
        if "mmap can only be used" in words:
            words = "it is not a file of torch.save"
        elif "Weights only load failed" in words:
            named = re.search(r"unsupported GLOBAL (\S+)", words)
            words = f"it holds more than data: {named[1] if named else 'no torch.save wrote it'}"
        self.what = f"{path} is not a readable checkpoint of a run ({words:.160})"
        super().__init__(f"ckpt_path={self.what}: name another one, or last")


def member(kind: Any, name: str) -> Enum:
    """The member of an enum: all that an index may ask `getattr` for."""
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise pickle.UnpicklingError("it names builtins.getattr")
    return kind[name]


class IndexUnpickler(pickle.Unpickler):
    """Unpickles the classes of an index and nothing else."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("builtins", "getattr"):  # as Python 3.11.0 to 3.11.3 pickle members of enums
            return member
        if name not in OF_AN_INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class SafePlanner(DefaultLoadPlanner):
    """Reads everything but tensors as plain data; torch's own planner would run any code in it."""

    @override
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.original_state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


def read_index(folder: Path) -> Metadata:
    """The index of a sharded checkpoint, if undamaged and data alone: then torch may read it too."""
    try:
        with (folder / INDEX).open("rb") as file:
            index = IndexUnpickler(file).load()
    except (OSError, *NO_DATA) as error:
        raise UnreadableError(folder, f"{INDEX}: {error}") from error
    if not isinstance(index, Metadata):
        raise UnreadableError(folder, f"{INDEX} is a {type(index).__name__}")
    return index


def check_shards(folder: Path) -> None:
    """Refuse shards that are damaged or hold more than data: then torch and Lightning may read the rest."""
    kinds = read_index(folder).state_dict_metadata.items()
    plain: dict[str, Any] = {key: None for key, kind in kinds if isinstance(kind, BytesStorageMetadata)}
    planner, reader = SafePlanner(flatten_state_dict=False), FileSystemReader(folder)
    try:
        state_dict_loader.load(plain, storage_reader=reader, planner=planner, no_dist=True)
        torch.load(folder / SHARDED, weights_only=True)
    except CheckpointException as error:
        raise UnreadableError(folder, next(iter(error.failures.values()))[0]) from error
    except (OSError, *NO_DATA) as error:
        raise UnreadableError(folder, error) from error


def read_data(path: Path, mapped: bool = False) -> Any:
    """What torch.save wrote into a file; if `mapped`, tensors stay on the disk until they are used."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, *NO_DATA) as error:
        raise UnreadableError(path, error) from error


def read_file(path: Path, mapped: bool = False) -> dict[str, Any]:
    """The content of a single-file checkpoint; refuses other or damaged files, and more than data."""
    content = read_data(path, mapped)
    if not isinstance(content, dict) or not set(content) >= OF_A_RUN:
        raise UnreadableError(path, f"it has not all of {', '.join(sorted(OF_A_RUN))}")
    if not re.match(r"[2-9]\.", version := str(content["pytorch-lightning_version"])):
        raise UnreadableError(path, f"Lightning {version} wrote it")
    return content


def state_of(owner: str, path: str | Path | None) -> dict[str, Any]:
    """What a part of a run, such as its data, has saved in a checkpoint; no tensor is read.

    Empty where it has saved nothing, and where the checkpoint cannot be read: loading it says why.
    """
    if path is None:
        return {}
    place = Path(path)
    try:
        content = read_data(place / SHARDED if is_sharded(place) else place, mapped=True)
    except UnreadableError:
        return {}
    state = content.get(owner) if isinstance(content, dict) else None
    return state if isinstance(state, dict) else {}


def check_checkpoint(path: Path) -> None:
    """Check that a checkpoint exists, of a run, undamaged and data alone, where that is quick to read."""
    if is_sharded(path):
        check_shards(path)
    elif path.is_dir():
        raise UnreadableError(path, f"it is a folder without {SHARDED}")
    elif not path.exists():
        raise ConfigError(f"ckpt_path={path}: there is no such file; name a checkpoint, or last")
    else:
        read_file(path, mapped=True)
