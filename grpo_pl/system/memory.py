"""The memory of the process; imports no torch."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

GIB = 1 << 30
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _BEYOND_ANY_TENSOR = -1, -3, 1 << 30
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def keep_freed_memory() -> None:
    """Have the process keep freed memory for reuse, until `release_free_memory`.

    By itself glibc hands each large tensor back at once, and the system clears the pages of the next one: a
    tenth of the time of a small model's forward and backward on a CPU.
    """
    with suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            libc.mallopt(threshold, _BEYOND_ANY_TENSOR)


def release_free_memory() -> None:
    """Return freed memory to the system: across phases of different shapes glibc keeps ever more."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_gib() -> float:
    """The greatest resident memory of this process since `forget_peak`, in GiB; 0 outside Linux."""
    with suppress(OSError):
        match = _PEAK.search(Path("/proc/self/status").read_text())
        return int(match[1]) / 2**20 if match else 0.0
    return 0.0


def forget_peak() -> None:
    """Count the greatest resident memory from here on."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
