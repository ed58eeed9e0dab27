"""A run as `plan` sees it, that nothing is wrong with."""

from dataclasses import replace

from grpo_pl.commands.plan.formulas import Network
from grpo_pl.commands.plan.requirements import Model, Requirements
from grpo_pl.models.architecture import Architecture
from grpo_pl.rollout.engine import EngineMemory
from grpo_pl.system.memory import GIB

TINY = Architecture(layers=2, hidden=64, intermediate=128, heads=2, kv_heads=1, head_dim=32, vocabulary=320)
TINY_PARAMETERS = 320 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
FLOAT32 = Network(TINY, 94_208, 4, 4, "eager", chunk_tokens=16)
MIXED = replace(FLOAT32, compute_bytes=2)


def model(**changes: object) -> Model:
    held = {"name": "policy", "parameters": 1000, "parameter_bytes": 4000, "gradient_bytes": 4000}
    return Model(**(held | {"optimizer_bytes": 8000, "network": FLOAT32} | changes))  # type: ignore[arg-type]


def small_run(**changes: object) -> Requirements:
    """A run that nothing is wrong with: 8 prompts of 8 responses, as trees, in 2 minibatches of 2."""
    settings = {
        "on_cpu": True,
        "free_bytes": 8 * GIB,
        "models": (model(network=replace(MIXED, attention="tree")),),
        "engine": EngineMemory(
            weights=2000, cache=GIB, cache_needed=GIB // 2, sampling=100, max_sequences=64
        ),
        "prompts": 8,
        "group_size": 8,
        "prompt_tokens": 40,
        "response_tokens": 24,
        "minibatches": 2,
        "update_epochs": 1,
        "micro_batches": 2,
        "keep_groups": True,
        "scores_first": False,
        "val_prompts": 0,
        "val_cache_bytes": 0,
        "reward_tokens": 0,
        "with_entropy": False,
        "measures_terms": False,
        "loss_name": "ClippedSurrogate",
        "idle_reference": False,
    }
    return Requirements(**(settings | changes))  # type: ignore[arg-type]
