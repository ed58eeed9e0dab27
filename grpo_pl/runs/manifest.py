"""Checksums of checkpoints: which are whole, and which is the newest whole one."""

import hashlib
import json
import logging
import pickle
import struct
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from grpo_pl.runs.layout import LAST, MANIFEST_FILE
from grpo_pl.system.atomic_files import write_atomically
from grpo_pl.system.collectives import agreed, first_rank_says, is_first_rank, rank_and_size
from grpo_pl.system.refusal import ConfigError

log = logging.getLogger(__name__)

SHARDED = "meta.pt"
"""Lightning's name for the file of a sharded checkpoint that holds everything but tensors."""
TORN = RuntimeError, EOFError, ValueError, LookupError, TypeError, struct.error, pickle.UnpicklingError
"""Errors that torch raises on a damaged file."""


@dataclass(frozen=True)
class Part:
    """A file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint, with size and checksum, and its step."""

    step: int
    """Optimizer steps so far; the checkpoint with more is the newer one."""
    files: dict[str, Part]
    """By path inside a sharded checkpoint; a single-file checkpoint has the empty path."""

    def write(self, checkpoint: Path) -> None:
        """Write the manifest beside a single-file checkpoint, or into a sharded one."""
        write_atomically(manifest_path(checkpoint), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> "Manifest | None":
        """The manifest of a checkpoint; None if it is missing or unreadable."""
        try:
            content = json.loads(manifest_path(checkpoint).read_text(encoding="utf-8"))
            files = {name: Part(**part) for name, part in content["files"].items()}
            return cls(int(content["step"]), files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def manifest_path(checkpoint: Path) -> Path:
    """The path of a checkpoint's manifest."""
    if checkpoint.is_dir():
        return checkpoint / MANIFEST_FILE
    return checkpoint.with_name(f"{checkpoint.name}.{MANIFEST_FILE}")


def measured(path: Path) -> Part:
    """Size and checksum of a file on the disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Part(path.stat().st_size, digest)


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is a folder of shards."""
    return (path / SHARDED).is_file()


# -------------------------------------------------------------------------------- which checkpoint is whole


def damage(checkpoint: Path, manifest: Manifest | None) -> str:
    """The damage of a checkpoint, in few words; empty if it is whole. Collective.

    Each rank reads some of the files. Without a manifest, torch must be able to open it.
    """
    if not checkpoint.exists():
        return agreed("it is missing")
    if manifest is None:
        return agreed("" if stored_step(checkpoint) is not None else "torch cannot open it")
    rank, size = rank_and_size()
    mine = sorted(manifest.files)[rank::size]
    return agreed(next(filter(None, (part_damage(checkpoint, manifest, name) for name in mine)), ""))


def part_damage(checkpoint: Path, manifest: Manifest, name: str) -> str:
    """The damage of one file of a checkpoint; empty if it is whole."""
    path, expected = checkpoint / name if name else checkpoint, manifest.files[name]
    subject = name or "it"
    if not path.is_file():
        return f"{subject} is missing"
    if (size := path.stat().st_size) != expected.bytes:
        return f"{subject} has {size} of {expected.bytes} bytes"
    return "" if measured(path) == expected else f"{subject} has another checksum than when it was written"


def stored_step(checkpoint: Path) -> int | None:
    """The optimizer steps stored in a checkpoint, without reading its tensors; None if it is torn."""
    path = checkpoint / SHARDED if is_sharded(checkpoint) else checkpoint
    if not zipfile.is_zipfile(path):
        return None
    with suppress(*TORN):
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, without the link `last.ckpt`."""
    return sorted(path for path in folder.glob("*.ckpt") if path.name != LAST)


def newest_first(folder: Path) -> list[tuple[Path, Manifest | None]]:
    """The checkpoints in a folder, most optimizer steps first; unreadable ones lead."""

    def step(pair: tuple[Path, Manifest | None]) -> float:
        path, manifest = pair
        known = stored_step(path) if manifest is None else manifest.step
        return float("inf") if known is None else float(known)

    return sorted(((path, Manifest.read(path)) for path in checkpoints(folder)), key=step, reverse=True)


def whole_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means, with verified checksums; refuses damaged ones. Collective.

    `last.ckpt` means the newest whole one of its folder; those that are not whole are named and passed over.
    """
    if path.name != LAST or (path.exists() and not path.is_symlink()):
        if wrong := damage(path, first_rank_says(Manifest.read(path))):
            raise ConfigError(f"ckpt_path: {path} is not a whole checkpoint ({wrong}): name another one")
        return path
    candidates = newest_first(path.parent)
    if path.is_symlink() and not path.exists():
        candidates.insert(0, (path.parent / path.readlink(), None))
    for candidate, manifest in first_rank_says(candidates):
        wrong = damage(candidate, manifest)
        if not wrong:
            return Path(candidate)
        if is_first_rank():
            log.warning("! %s is passed over: %s", candidate, wrong)
    raise ConfigError(
        f"ckpt_path: none of the checkpoints in {path.parent} is whole: name another one, or start anew with "
        "--resume never, which keeps what is there"
    )
