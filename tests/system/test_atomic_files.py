"""What is on the disk when: nothing bears its name before it is whole there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_pl.system.atomic_files import DiskFullError, append, replacing, room_for, write_atomically


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the system is asked to do, in its order."""
    said: list[str] = []

    def spied(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*arguments: Any) -> Any:
            what = arguments[0]
            path = Path(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what)
            said.append(f"{name} {'folder' if path.is_dir() else 'file'}")
            return call(*arguments)

        return spy

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, spied(name, getattr(os, name)))
    return said


def test_a_file_gets_its_name_when_it_lies_on_the_disk_and_then_the_name_does(
    tmp_path: Path, calls: list[str]
) -> None:
    write_atomically(tmp_path / "file", "text")
    assert calls == ["fsync file", "replace file", "fsync folder"]


def test_what_is_added_lies_on_the_disk(tmp_path: Path, calls: list[str]) -> None:
    append(tmp_path / "new" / "file", "one\n")
    append(tmp_path / "new" / "file", "two\n")
    assert (tmp_path / "new" / "file").read_text() == "one\ntwo\n"
    assert calls == ["fsync file", "fsync file"]


def test_a_body_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("no bytes")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_lack_of_room_is_called_one() -> None:
    said = r"file cannot be written \(No space left on device\): make room there"
    with pytest.raises(DiskFullError, match=said), room_for(Path("file")):
        raise OSError(28, "No space left on device")
    with pytest.raises(PermissionError), room_for(Path("file")):
        raise PermissionError(13, "Permission denied")
