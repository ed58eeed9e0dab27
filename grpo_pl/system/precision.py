"""Measures which type of matrix products is fast on a device."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

AUTO = "auto"
"""The config value that leaves the type open."""
DType = Literal["float32", "bfloat16", "float16"]
OpenDType = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS: dict[DType, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "float32": "32-true",
    "bfloat16": "bf16-mixed",
    "float16": "16-mixed",
}
"""The `trainer.precision` that multiplies in a type and keeps float32 weights."""
WORTH = 1.2
"""A type of 16 bits is chosen if it is this many times as fast as float32."""
CPU_SHAPE, GPU_SHAPE = (128, 256, 512), (4096, 4096, 4096)
"""A product `[m, k] x [k, n]`; it takes 0.1 s on a CPU without bfloat16, at 0.4 GFLOP/s."""
REPEATS, AT_LEAST, SLOW_S = 30, 3, 0.01
"""Number of timed products, and the least number if one takes longer than this many seconds."""


@dataclass(frozen=True)
class Rates:
    """A device's speed of matrix products, in GFLOP/s; for a CPU, of one thread."""

    device: str
    """`cpu`, `cuda`, ..."""
    float32: float
    bfloat16: float
    float16: float

    def of(self, dtype: DType) -> float:
        """The rate in one type."""
        return float(getattr(self, dtype))

    @property
    def fitting(self) -> DType:
        """bfloat16 where it is worth it, else float16 where a GPU has nothing else, else float32."""
        on_cpu = self.device == "cpu"
        if self.bfloat16 >= WORTH * self.float32 and (on_cpu or self.bfloat16 >= self.float16 / 2):
            return "bfloat16"
        return "float16" if not on_cpu and self.float16 >= WORTH * self.float32 else "float32"

    @property
    def reason(self) -> str:
        """The fitting type, and why, in words."""
        other: DType = "bfloat16" if self.fitting == "float32" else "float32"
        rate = self.of(self.fitting) / self.of(other)
        device = "CPU" if self.device == "cpu" else "GPU"
        return f"{self.fitting}: this {device} multiplies it {rate:.2g} times as fast as {other}"

    def slower(self, dtype: DType) -> float:
        """The time of products, as a multiple of the fitting type's."""
        return self.of(self.fitting) / self.of(dtype)


Multiply = Callable[[Tensor, Tensor], Callable[[], object]]
"""Prepares the product of states `[m, k]` and weights `[n, k]`; calling the result computes it."""


def with_torch(states: Tensor, weights: Tensor) -> Callable[[], object]:
    """Prepare a product as the trainer computes it."""
    return lambda: torch.nn.functional.linear(states, weights)


@lru_cache
def measured_rates(device: str, multiply: Multiply = with_torch) -> Rates:
    """Measure a type of device by `multiply`, in a tenth of a second; a CPU on one thread, as on all."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        types: tuple[DType, ...] = get_args(DType)
        return Rates(device, **{dtype: _rate(device, dtype, multiply) for dtype in types})
    finally:
        if device == "cpu":
            torch.set_num_threads(threads)


def _rate(device: str, dtype: DType, multiply: Multiply) -> float:
    """The best of several products: other work on the machine slows single ones."""
    m, k, n = CPU_SHAPE if device == "cpu" else GPU_SHAPE
    states = torch.ones(m, k, dtype=getattr(torch, dtype), device=device)
    product = multiply(states, torch.ones(n, k, dtype=states.dtype, device=device))
    best = float("inf")
    for repeat in range(REPEATS):
        start = time.perf_counter()
        product()
        if device != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - start)
        if repeat >= AT_LEAST and best > SLOW_S:
            break
    return 2 * m * k * n / best / 1e9


def device_here() -> torch.device:
    """This machine's accelerator, else its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def chosen_dtype(dtype: OpenDType, device: torch.device | None = None) -> DType:
    """The given type; for `auto` the one that is fast on the device, by default this machine's."""
    return measured_rates((device or device_here()).type).fitting if dtype == "auto" else dtype
