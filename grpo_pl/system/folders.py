"""Checks where something is to be written before the work for it begins."""

import os
from pathlib import Path
from typing import Any

from grpo_pl.system.refusal import ConfigError


def check_folder(key: str, folder: Any) -> None:
    """Refuse a folder that cannot be written."""
    if not folder or "://" in str(folder):
        raise ConfigError(f"{key}={folder}: expected a folder of this machine")
    try:
        nearest = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"{key}={folder}: is not a folder ({error.strerror}); name another one") from error
    if not nearest.is_dir():
        raise ConfigError(f"{key}={folder}: {nearest} is a file; name a folder, or move the file away")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={folder}: {nearest} cannot be written; name another folder")
