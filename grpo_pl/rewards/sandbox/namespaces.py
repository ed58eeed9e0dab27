"""Separates root, network, process table and user by Linux's namespaces; see namespaces(7)."""

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

from grpo_pl.rewards.sandbox.kernel import call

NOBODY = 65534
BOX = "/box"
"""The temporary directory inside, the only one that a program can write to."""

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 32, 4096, 16384, 1 << 18
_MS_RDONLY, _MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 1, 2, -100, 0x8000
_MOUNT_SETATTR, _PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
_NEW_ROOT = "/sys"  # any folder that always exists and holds no interpreter
_DEVICES = "/dev/null", "/dev/zero", "/dev/urandom"
_MAX_FILES = 1000


def enter(readable: Sequence[str], disk_bytes: int) -> None:
    """Leave this machine's files and network; the next child is the first process of a new table.

    The new root shows `readable` paths of the old one, read-only, and one folder in memory, of `disk_bytes`,
    that can be written to. OSError if the kernel does not grant it.
    """
    user, group = os.geteuid(), os.getegid()
    call("unshare", _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET | (_NEWUSER if user else 0))
    if user:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", _NEW_ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in readable:
        _show(path)
    for device in _DEVICES:
        _bind(device)
    box = _NEW_ROOT + BOX
    os.mkdir(box)
    options = f"size={disk_bytes},nr_inodes={_MAX_FILES},mode=1777"
    _mount("tmpfs", box, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    os.symlink(BOX, _NEW_ROOT + "/tmp")
    _mount(None, _NEW_ROOT, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(_NEW_ROOT)
    call("syscall", _PIVOT_ROOT[platform.machine()], b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir(BOX)


def become_nobody() -> None:
    """Give up the rights of root, as nobody in a new user namespace, whose processes are counted apart."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        call("unshare", _NEWUSER)


def _show(path: str) -> None:
    """Make a folder or file of the old root visible in the new one, read-only."""
    os.makedirs(os.path.dirname(_NEW_ROOT + path), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), _NEW_ROOT + path)
        return
    _bind(path)
    only_read = struct.pack("QQQQ", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)  # named MOUNT_ATTR_* there
    buffer = ctypes.create_string_buffer(only_read, len(only_read))
    target = os.fsencode(_NEW_ROOT + path)
    call("syscall", _MOUNT_SETATTR, _AT_FDCWD, target, _AT_RECURSIVE, buffer, ctypes.c_size_t(len(only_read)))


def _bind(path: str) -> None:
    target = _NEW_ROOT + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _mount(path, target, None, _MS_BIND | _MS_REC)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
