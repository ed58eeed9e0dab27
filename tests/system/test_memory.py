"""What a process does with the memory that it frees; each test in a process of its own, as malloc is one."""

import resource
import subprocess
import sys

SCRIPT = """
import resource
import psutil
import torch
from grpo_pl.system.memory import keep_freed_memory, release_free_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return psutil.Process().memory_info().rss / 2**20

print(faults())
keep_freed_memory()
faults()  # the heap grows first
print(faults())
before = held()
release_free_memory()
print(before - held())
"""


def test_what_is_kept_is_used_again_and_what_is_released_is_gone() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    by_itself, kept, released_mib = map(float, done.stdout.split())
    pages = 2**26 / resource.getpagesize()
    assert by_itself > 19 * pages
    assert kept < pages
    assert released_mib > 60
