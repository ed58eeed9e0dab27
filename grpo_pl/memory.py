"""The memory of the process and of tensors."""

import ctypes
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def release_free_memory() -> None:
    """Hand freed memory back to the system: between phases of other shapes glibc keeps ever more."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_gib() -> float:
    """The greatest resident memory of this process since `forget_peak`, in GiB; 0 where Linux is not."""
    with suppress(OSError):
        found = _PEAK.search(Path("/proc/self/status").read_text())
        return int(found[1]) / 2**20 if found else 0.0
    return 0.0


def forget_peak() -> None:
    """Count the greatest resident memory from here on."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
