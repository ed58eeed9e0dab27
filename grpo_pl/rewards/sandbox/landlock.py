"""Which files a process may open, by Linux's Landlock (kernel 5.13 and later); see landlock(7)."""

import ctypes
import os
import struct
from collections.abc import Sequence

from grpo_pl.rewards.sandbox.kernel import call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_OF_ABI_1 = (1 << 13) - 1


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Let this process, and what it executes, open only files beneath some paths; after PR_SET_NO_NEW_PRIVS.

    OSError if the kernel has no Landlock.
    """
    handled = ctypes.create_string_buffer(struct.pack("Q", _ALL_OF_ABI_1), 8)
    ruleset = call("syscall", _CREATE_RULESET, handled, ctypes.c_size_t(8), 0)
    for path in (*readable, *writable):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = _EXECUTE | _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        rights |= _WRITE_FILE if path in writable else 0
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, folder), 12)
        call("syscall", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        os.close(folder)
    call("syscall", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
