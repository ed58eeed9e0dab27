"""Measures a process's memory beside the terms of `grpo_pl plan`: its libraries, without a GPU.

python tools/measure_overhead.py [MODEL]

Prints the memory of the process after importing grpo_pl, which is `commands.plan.estimate.PROCESS_BYTES`, and
the memory that starting vLLM adds beside weights and cache, which is `rollout.vllm.LIBRARIES_BYTES`.
"""

import sys
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout need not be installed

import grpo_pl.commands.fit.running  # noqa: F401 - what every run imports
from grpo_pl.rollout.engine import Demand
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.system.memory import GIB, release_free_memory


def held_gib() -> float:
    """The memory of this process, without what it could hand back."""
    release_free_memory()
    return float(psutil.Process().memory_info().rss / GIB)


def main() -> None:
    """Start an engine and subtract its weights and cache."""
    model = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
    imported, device = held_gib(), torch.device("cpu")
    print(f"process {imported:.2f} GiB")
    engine = VLLMEngine(model, dtype="bfloat16", kv_cache_gib=0.3)
    engine.start(max_sequence_tokens=120, max_sequences=192, device=device)
    memory = engine.memory(Demand(sequences=192, group_size=8, prompt_tokens=96, response_tokens=24), device)
    print(f"vLLM    {held_gib() - imported - (memory.weights + memory.cache) / GIB:.2f} GiB")
    engine.shutdown()


if __name__ == "__main__":
    main()
