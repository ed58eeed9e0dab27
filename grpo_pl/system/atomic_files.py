"""Atomic file writes: a kill, a power cut or a full disk leaves the old file or the new one."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PARTIAL = ".partial"
"""Suffix of files being written; after a kill they are rubbish."""


class DiskFullError(RuntimeError):
    """The disk has no room for a file of a run; earlier files are untouched."""


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn a full disk into a DiskFullError that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        reason = os.strerror(error.errno or 0)
        raise DiskFullError(
            f"{path} cannot be written ({reason}): make room there, and the same command continues the run"
        ) from error


def partial_of(path: Path) -> Path:
    """The path at which a file or folder is written before it gets its name."""
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces the path when the body ends, flushed to the disk.

    At any time the path names the old file or the complete new one.
    """
    partial = partial_of(path)
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content at once: a reader sees the old or the new text, even after a kill."""
    with replacing(path) as file:
        file.write(text.encode())


def append(path: Path, text: str) -> None:
    """Append text to a file and flush it to the disk, which may take a part of it before it is full."""
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, as fsync does for a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
