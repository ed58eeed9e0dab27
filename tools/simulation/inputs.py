"""The inputs of the simulation: a cluster, an iteration's work, and models.

Every constant is a field with its source: *published* (by whom), *measured* (by us), or *assumed*.
Seconds, bytes, and FLOPs throughout.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

from grpo_pl.models.architecture import Architecture

WEIGHT = 2
"""Bytes of a parameter in bfloat16."""
GRID = 1024
"""Points of the distribution of response lengths."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A cluster of GPUs; the defaults are H100 SXM nodes with 400 Gb/s for each GPU."""

    gpus_per_node: int = 8
    """Published: DGX H100."""
    flops: float = 989e12
    """Published: H100 SXM data sheet, dense bfloat16; H200 the same."""
    mfu: float = 0.36
    """Share of them in the update. Published: FSDP2 of Llama 3.1 8B on 8 to 128 H100, 0.33 to 0.39
    (torchtitan, docs/performance.md); Llama 3 405B 0.38 to 0.43 (arXiv:2407.21783, table 4)."""
    engine_mfu: float = 0.5
    """Share of them in the engine's matrix products. Assumed."""
    memory_bytes: float = 80e9
    """Published: H100 SXM; H200: 141e9."""
    memory_share: float = 0.9
    """Share of the memory that may be used. Assumed; vLLM's gpu_memory_utilization is 0.9 too."""
    memory_bandwidth: float = 3.35e12
    """Published: H100 SXM; H200: 4.8e12."""
    memory_use: float = 0.8
    """Share of the bandwidth that decoding reaches. Assumed."""
    nvlink: float = 450e9
    """Bytes a second of a GPU, one way. Published: 900 GB/s both ways."""
    network: float = 50e9
    """Bytes a second of a GPU, one way. Published: 400 Gb/s InfiniBand NDR for each GPU of a DGX H100."""
    link_use: float = 0.8
    """Share of the links that large collectives reach. Assumed."""
    base_latency_s: float = 8.4e-6
    """Latency of a collective. Published: NCCL, src/graph/tuning.cc (ring, Simple), as the next two."""
    nvlink_hop_s: float = 3.4e-6
    network_hop_s: float = 14e-6
    reduce_s: float = 10e-6
    """Seconds of the engine's sum over tensor-parallel ranks, twice a layer. Assumed."""
    step_s: float = 2e-3
    """Overhead of a decoding step beside the GPU's work, with CUDA graphs (enforce_eager: false). Assumed."""
    tensor_s: float = 1.1e-3
    """Overhead of sending a parameter to the engine, beside its bytes. Measured: at most this on two CPU
    cores (0.3 s for SmolLM2-135M's 272, findings/README.md)."""
    wake_s: float = 2.5
    """To put a colocated engine to sleep and wake it. Published: waking from level 2 takes 0.8 to 2.6 s (vLLM
    blog, 2025-10-26)."""
    storage_node: float = 10e9
    """Bytes a second of a node to and from shared files. Assumed."""
    storage: float = 100e9
    """Bytes a second of all nodes together. Assumed: 1,000 GPUs' share of the 2 TB/s that 16,384 had
    (arXiv:2407.21783)."""
    mtbf_hours: float = 50_700
    """Hours between two failures of one GPU and its share of a node. Published: 419 in 54 days of 16,384 GPUs
    (arXiv:2407.21783, section 3.3.4)."""
    restart_s: float = 600
    """Seconds from a failure until the job computes again. Assumed."""

    def gather(self, ranks: int, number: float, size: float) -> float:
        """Seconds of so many all-gathers or reduce-scatters of so many bytes in all: NCCL's ring."""
        if ranks == 1:
            return 0.0
        nodes = -(-ranks // self.gpus_per_node)
        hops = (ranks - nodes) * self.nvlink_hop_s + (nodes - 1) * self.network_hop_s
        link = self.nvlink if nodes == 1 else min(self.nvlink, self.gpus_per_node * self.network)
        return number * (self.base_latency_s + hops) + size * (ranks - 1) / ranks / (link * self.link_use)

    def replicas_sum(self, nodes: int, number: float, size: float) -> float:
        """Seconds of so many all-reduces between the nodes of a hybrid-sharded run: NCCL's tree."""
        if nodes == 1:
            return 0.0
        hops = 2 * math.log2(nodes) * self.network_hop_s
        return number * (self.base_latency_s + hops) + 2 * size / (self.network * self.link_use)

    def broadcast(self, nodes: int, number: float, size: float) -> float:
        """Seconds of so many broadcasts from one GPU to so many nodes: its own port is the limit."""
        hops = math.log2(1 + nodes) * self.network_hop_s
        return number * (self.base_latency_s + hops) + size / (self.network * self.link_use)

    def files(self, nodes: int, size: float) -> float:
        """Seconds until one node has written a file and so many nodes have read it."""
        read = min(self.storage_node, self.storage / nodes)
        return size / self.storage_node + size / read

    def save(self, nodes: int, size: float) -> float:
        """Seconds of a sharded checkpoint."""
        return size / min(nodes * self.storage_node, self.storage)

    def lost_share(self, gpus: int, iteration_s: float, save_s: float) -> float:
        """The share of a run's time for checkpoints and failures, with checkpoints at the best interval.

        Young's interval (doi:10.1145/361147.361115), sqrt(2 save MTBF), and at least an iteration.
        """
        between_failures = 3600 * self.mtbf_hours / gpus
        if math.isinf(between_failures):
            return 0.0
        interval = max(iteration_s, math.sqrt(2 * save_s * between_failures))
        return min(save_s / interval + (interval / 2 + self.restart_s) / between_failures, 1.0)


@dataclass(frozen=True, kw_only=True)
class Work:
    """An iteration; the defaults are DAPO's batch (arXiv:2503.14476, section 4.1) on grpo_pl's engine."""

    prompts: int = 512
    group_size: int = 16
    minibatches: int = 16
    update_epochs: int = 1
    prompt_tokens: int = 256
    """Assumed."""
    max_tokens: int = 8192
    mean_share: float = 0.25
    """The mean response over `max_tokens`. Assumed; a run logs it as rollout/response_tokens."""
    spread: float = 0.8
    """Standard deviation of the logarithm of lengths. Assumed."""
    correlation: float = 0.5
    """Correlation of the lengths of two responses to one prompt. Assumed."""
    max_sequences: int = 256
    """Sequences that an engine decodes at once: VLLMEngine's default."""
    micro_batch_tokens: int = 16384
    """Tokens of a micro-batch, and at least the longest sequence. Assumed."""
    recompute: bool = True
    """model.policy.gradient_checkpointing: 8 instead of 6 FLOPs for each weight and token."""

    @property
    def responses(self) -> int:
        """Responses of an iteration, on all ranks."""
        return self.prompts * self.group_size

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_tokens + self.max_tokens

    @property
    def lengths(self) -> "Lengths":
        """The distribution of response lengths."""
        return Lengths.of(self.mean_share * self.max_tokens, self.max_tokens, self.spread)

    @property
    def read_tokens(self) -> float:
        """Tokens that a pass over the rollout reads: a group's prompt once in each of its micro-batches."""
        capacity = max(self.micro_batch_tokens, self.longest) - self.prompt_tokens
        pieces = math.ceil(self.group_size * self.lengths.mean / capacity)
        return self.responses * self.lengths.mean + self.prompts * pieces * self.prompt_tokens

    def skew(self, responses: float, ranks: int) -> float:
        """The most tokens of a rank over the mean, each with so many responses, whole groups together.

        The sum of n lengths has the variance n (1 + (m - 1) correlation) times that of one, with m responses
        of a group in it; the maximum of so many normal sums follows Blom's approximation.
        """
        lengths, together = self.lengths, min(max(responses, 1), self.group_size)
        deviation = lengths.deviation * math.sqrt((1 + (together - 1) * self.correlation) / max(responses, 1))
        most = 1 + deviation / lengths.mean * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))
        return min(most, self.max_tokens / lengths.mean)


@dataclass(frozen=True)
class Lengths:
    """Response lengths: log-normal, cut at the most tokens, with the mean after the cut."""

    tokens: Tensor
    """Grid of positions, in the middle of their cells."""
    alive: Tensor
    """Share of the responses that are longer."""

    @staticmethod
    @lru_cache
    def of(mean: float, most: float, spread: float) -> "Lengths":
        """The lengths with this mean, most tokens, and standard deviation of the logarithm."""
        if not spread or mean >= most:
            end = min(mean, most)
            return Lengths((torch.arange(GRID).double() + 0.5) * end / GRID, torch.ones(GRID).double())
        tokens = (torch.arange(GRID).double() + 0.5) * most / GRID
        low, high = 0.0, most * math.exp(5 * spread)
        for _ in range(60):
            median = (low + high) / 2
            found = Lengths(tokens, torch.special.ndtr((median / tokens).log() / spread))
            low, high = (median, high) if found.mean < mean else (low, median)
        return found

    @cached_property
    def cell(self) -> float:
        """Tokens of a cell of the grid."""
        return float(2 * self.tokens[0])

    @cached_property
    def mean(self) -> float:
        """Mean tokens of a response."""
        return float(self.alive.sum()) * self.cell

    @cached_property
    def deviation(self) -> float:
        """Standard deviation of a response's tokens."""
        return math.sqrt(max(float(2 * (self.tokens * self.alive).sum()) * self.cell - self.mean**2, 0.0))

    @cached_property
    def context(self) -> float:
        """Tokens of the response before one of its tokens, on average."""
        return (self.deviation**2 + self.mean**2) / (2 * self.mean)

    def any_alive(self, responses: float) -> Tensor:
        """The probability that any of so many is longer; its sum over tokens is the expected longest."""
        return 1 - (1 - self.alive) ** responses


@dataclass(frozen=True)
class Model:
    """A decoder; biases are left out."""

    architecture: Architecture
    tied: bool
    tensors_per_layer: int

    @cached_property
    def layer(self) -> int:
        """Parameters of a layer."""
        a = self.architecture
        attention = 2 * a.hidden * a.head_dim * (a.heads + a.kv_heads)
        return attention + 3 * a.hidden * a.intermediate + 2 * a.hidden

    @cached_property
    def computed(self) -> int:
        """Parameters that every token is multiplied with: all but an embedding that is only looked up."""
        return self.architecture.layers * self.layer + self.architecture.vocabulary * self.architecture.hidden

    @cached_property
    def parameters(self) -> int:
        """All parameters."""
        embedding = 0 if self.tied else self.architecture.vocabulary * self.architecture.hidden
        return self.computed + embedding + self.architecture.hidden

    @property
    def tensors(self) -> int:
        """Tensors that are sent to the engine, one at a time."""
        return self.architecture.layers * self.tensors_per_layer + (2 if self.tied else 3)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in bfloat16."""
        return WEIGHT * self.parameters

    def forward_flops(self, context: float) -> float:
        """FLOPs of a token with a context of so many others."""
        a = self.architecture
        return 2 * self.computed + 4 * a.layers * a.heads * a.head_dim * context


MODELS = {
    "0.135B": Model(Architecture(30, 576, 1536, 9, 3, 64, 49152), True, 9),
    "1.5B": Model(Architecture(28, 1536, 8960, 12, 2, 128, 151936), True, 12),
    "7B": Model(Architecture(28, 3584, 18944, 28, 4, 128, 152064), False, 12),
    "32B": Model(Architecture(64, 5120, 27648, 40, 8, 128, 152064), False, 12),
    "70B": Model(Architecture(80, 8192, 28672, 64, 8, 128, 128256), False, 9),
}
"""The config.json of SmolLM2-135M, Qwen2.5-1.5B, -7B and -32B, and Llama-3.1-70B."""
