"""Locks a run's folder for one process."""

import fcntl
import logging
import os
import socket
from io import TextIOWrapper
from pathlib import Path

from grpo_pl.runs.layout import LOCK_FILE
from grpo_pl.system.refusal import ConfigError

log = logging.getLogger(__name__)


class Lock:
    """A lock on a run's folder, released by the system when the process ends in any way.

    A POSIX record lock, which no child inherits. If the client's machine dies, an NFS server releases it
    later (NFSv4 after 90 seconds by default). The folder need not exist; `key` is its config key.
    """

    def __init__(self, folder: Path, key: str = "trainer.default_root_dir") -> None:
        self.folder, self.key = folder, key
        self._file: TextIOWrapper | None = None

    def take(self) -> None:
        """Lock the folder; ConfigError if another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / LOCK_FILE
        while True:
            self._file = path.open("a+", encoding="utf-8")
            self._lock(self._file)
            if path.exists() and os.fstat(self._file.fileno()).st_ino == path.stat().st_ino:
                break  # else the previous holder has just removed it
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def _lock(self, file: TextIOWrapper) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ConfigError(
                f"{self.key}={self.folder} is in use by {file.read().strip()}: name another "
                "folder, or end that run first"
            ) from None
        except OSError as error:
            warning = "! %s cannot be locked (%s): nobody would notice a second run in it"
            log.warning(warning, self.folder, error.strerror)

    def leave(self) -> None:
        """Release the lock, and remove the folder if it is empty."""
        if self._file is None:
            return
        path = self.folder / LOCK_FILE
        path.unlink(missing_ok=True)
        self._file.close()
        self._file = None
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
