"""The bytes of layers, optimizers, models and engines: by hand, and against autograd."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_runs import FLOAT32, MIXED, TINY, TINY_PARAMETERS
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from grpo_pl.commands.plan.formulas import (
    Network,
    Rows,
    activation_bytes,
    cast_bytes,
    head_bytes,
    layer_bytes,
    tree_of,
)
from grpo_pl.commands.plan.requirements import optimizer_bytes
from grpo_pl.models import CausalLM
from grpo_pl.models.architecture import Architecture
from grpo_pl.models.loading import load_language_model, set_attention, without_weights
from grpo_pl.models.packing import hidden_before_each_token, pack
from grpo_pl.rollout.engine import Demand
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.system.memory import GIB

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------- formulas


def test_the_bytes_of_a_tiny_layer_computed_by_hand() -> None:
    """3 rows of 32 tokens; of each token: norms 2 (256 + 4 + 256), inputs 5 64 c + 64 c, inner 4 128 c."""
    rows, tokens = Rows(3, 32), 96
    shared_inputs = 2 * 64 * 4 + 64 * 4
    assert layer_bytes(FLOAT32, rows) == tokens * (1032 + shared_inputs + 2048 + 3 * 64 * 4 + 2 * 32 * 4)
    copies = 5 * 64 * 2 + 64 * 2
    assert layer_bytes(MIXED, rows) == tokens * (1032 + copies + 1024 + 3 * 64 * 2 + 2 * 32 * (4 + 2))
    kernel = 64 * 2 + 2 * 32 * 2 + 2 * 4
    assert layer_bytes(replace(MIXED, attention="sdpa"), rows) == tokens * (1032 + copies + 1024 + kernel)


def kept_by_autograd(network: Network, rows: Rows, prompt: int, layers: int) -> int:
    """Bytes that the real layers keep for a backward, their weights and the copies of those apart."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    a = network.architecture
    config = LlamaConfig(
        vocab_size=a.vocabulary,
        hidden_size=a.hidden,
        intermediate_size=a.intermediate,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        head_dim=a.head_dim,
        num_hidden_layers=layers,
    )
    dtype = torch.float32 if network.weight_bytes == 4 else torch.bfloat16
    built = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    set_attention(built, network.attention)
    weights = {p.untyped_storage().data_ptr() for p in built.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (pointer := tensor.untyped_storage().data_ptr()) not in weights:
            kept[pointer] = tensor
        return tensor

    mixed = network.compute_bytes != network.weight_bytes
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), saved_tensors_hooks(keep, lambda t: t):
        if network.attention == "tree":
            hidden_before_each_token(built.base_model, *responses(3, 4, prompt, 9))
        else:
            built.base_model(torch.zeros(rows.number, rows.tokens, dtype=torch.long), use_cache=False)
    copies = sum(m.weight.numel() for m in built.base_model.modules() if isinstance(m, torch.nn.Linear))
    return sum(t.untyped_storage().nbytes() for t in kept.values()) - (2 * copies if mixed else 0)


@pytest.mark.parametrize(("attention", "prompt"), [("eager", 0), ("sdpa", 0), ("tree", 20), ("tree", 600)])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 2), (2, 2)])
def test_a_layer_keeps_what_autograd_keeps(sizes: tuple[int, int], attention: str, prompt: int) -> None:
    """Of 600 tokens a prompt has more keys than are scored in float32."""
    network = Network(
        replace(TINY, heads=4, kv_heads=2, head_dim=16),
        linear_parameters=0,
        weight_bytes=sizes[0],
        compute_bytes=sizes[1],
        attention=attention,
    )
    rows = tree_of(3, 4, prompt, 9) if attention == "tree" else Rows(3, 32)
    two, four = (kept_by_autograd(network, rows, prompt, layers) for layers in (2, 4))
    assert layer_bytes(network, rows) == (four - two) // 2


def test_the_vocabulary_enters_the_logits_alone() -> None:
    larger = replace(MIXED, architecture=replace(TINY, vocabulary=640))
    rows = Rows(4, 64)
    assert activation_bytes(larger, rows) == activation_bytes(MIXED, rows)
    assert head_bytes(larger, False) == 2 * head_bytes(MIXED, False)
    assert head_bytes(MIXED, False) == 320 * (2 * 16 + 2 * 4 * 16 + (2 + 4) * 64)


def test_gradient_checkpointing_keeps_the_input_of_each_layer() -> None:
    rows = Rows(4, 64)
    again = replace(MIXED, checkpointing=True)
    assert activation_bytes(again, rows) == 2 * 4 * 64 * 64 * 4 + 2 * layer_bytes(MIXED, rows)


def test_autocast_copies_the_weights_of_another_type_alone() -> None:
    assert cast_bytes(MIXED) == 2 * 94_208
    assert cast_bytes(FLOAT32) == 0


def responses(groups: int, size: int, prompt: int, response: int) -> tuple[Tensor, Tensor]:
    """Groups of responses that have nothing but their prompt in common."""
    prompts = torch.arange(groups)[:, None].expand(-1, prompt).repeat_interleave(size, 0)
    answers = torch.arange(groups * size)[:, None].expand(-1, response)
    token_ids = torch.cat([prompts, answers], 1)
    return token_ids, (torch.arange(prompt + response) >= prompt).expand(len(token_ids), -1)


@pytest.mark.parametrize(
    ("groups", "size", "prompt", "response"),
    [(2, 8, 47, 24), (3, 8, 96, 24), (5, 1, 30, 20), (2, 4, 100, 100), (7, 3, 20, 15)],
)
def test_the_tree_is_that_of_pack(groups: int, size: int, prompt: int, response: int) -> None:
    layout = pack(*responses(groups, size, prompt, response))
    queries, keys = (sum(batch[i].numel() for batch in layout.tree.batches) for i in (0, 1))
    assert tree_of(groups, size, prompt, response)[:4] == (1, len(layout.token_ids), queries, keys)


# ----------------------------------------------------------------------------------------------- optimizers


def adamw(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-4)  # type: ignore[arg-type]


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)  # type: ignore[arg-type]


def momentum(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize(("factory", "state"), [(adamw, 8), (sgd, 0), (momentum, 4)])
def test_an_optimizer_says_its_state_by_one_step(factory: Callable, state: float) -> None:
    assert optimizer_bytes(factory) == state


# --------------------------------------------------------------------------------------------------- models


def test_without_weights_nothing_is_held(tiny_model: Path) -> None:
    with without_weights():
        built = CausalLM(str(tiny_model)).build()
    assert all(p.is_meta for p in built.parameters())
    assert sum(p.numel() for p in built.parameters()) == TINY_PARAMETERS
    assert Architecture.of(built.language_model) == TINY
    assert not any(p.is_meta for p in load_language_model(str(tiny_model), "float32").parameters())


def test_the_key_value_cache_by_hand() -> None:
    assert TINY.cache_bytes(tokens=10, element_bytes=2) == 2 * 2 * 1 * 32 * 10 * 2


DEMAND = Demand(sequences=16, group_size=4, prompt_tokens=20, response_tokens=10)


def test_vllm_on_a_cpu_packs_a_tied_head_again(tiny_model: Path, tiny_untied_model: Path) -> None:
    tied, untied = (
        VLLMEngine(str(folder), dtype="bfloat16", kv_cache_gib=0.5).memory(DEMAND, CPU)
        for folder in (tiny_model, tiny_untied_model)
    )
    assert tied.weights == untied.weights == 2 * (TINY_PARAMETERS + 320 * 64)
    assert tied.cache == GIB // 2
    assert tied.cache_needed == TINY.cache_bytes(4 * 20 + 16 * 10, 2)
    assert not tied.sleeps


def test_vllm_on_a_gpu_sleeps(tiny_model: Path) -> None:
    engine = VLLMEngine(str(tiny_model), dtype="bfloat16").memory(DEMAND, torch.device("cuda", 0))
    assert engine.sleeps
    assert engine.weights == 2 * TINY_PARAMETERS
    assert engine.libraries == 0


def test_the_engine_in_the_process_holds_a_copy(tiny_model: Path) -> None:
    engine = InProcessEngine(str(tiny_model), max_sequences=8).memory(DEMAND, CPU)
    assert engine.weights == 4 * TINY_PARAMETERS
    assert engine.cache == TINY.cache_bytes(8 * 30, 4)
