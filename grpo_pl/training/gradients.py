"""Gradients of many parameters as one vector: norm, inner product, clipping."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Gradient = Sequence[Tensor | None]
"""The gradient of each parameter; None where a parameter has none."""


def by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters with a gradient, grouped by device mesh, since torch cannot mix meshes."""
    kinds: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter)
    return list(kinds.values())


def total_norm(kinds: Iterable[list[nn.Parameter]], flat_shards: bool) -> Tensor:
    """The L2 norm of whole gradients, grouped by mesh; the same on all ranks, collective if they are sharded.

    `flat_shards` says whether they are parts of FSDP1's flat parameters, which do not show it.
    """
    norms = [norm_of([p.grad for p in kind if p.grad is not None]) for kind in kinds]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.zeros(())
    if flat_shards:
        square = total.square().to(torch.accelerator.current_accelerator() or "cpu")
        torch.distributed.all_reduce(square)
        total = square.sqrt()
    return total


def norm_of(gradients: Iterable[Tensor]) -> Tensor:
    """The L2 norm of tensors of one mesh together, in float32 whatever their types."""
    each = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(each))
    return norm


def clip(kinds: Iterable[list[nn.Parameter]], bound: float, norm: Tensor | None) -> None:
    """Scale gradients of the given norm down to the bound; without a norm, clamp each number at it."""
    for kind in kinds:
        if norm is None:
            torch.nn.utils.clip_grad_value_(kind, bound)
        else:
            torch.nn.utils.clip_grads_with_norm_(kind, bound, norm)


@contextmanager
def set_aside(parameters: Sequence[nn.Parameter]) -> Iterator[Gradient]:
    """Remove the gradients of parameters in the body, and restore them after it."""
    kept = taken(parameters)
    try:
        yield kept
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def taken(parameters: Sequence[nn.Parameter]) -> Gradient:
    """Remove and return the gradients of parameters."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def inner_product(one: Gradient, other: Gradient) -> float:
    """The sum of the products of all entries, the same on every rank; collective where they are sharded."""
    sums: dict[Any, Tensor] = {}
    for a, b in zip(one, other, strict=True):
        if a is not None and b is not None:
            product = (a.float() * b.float()).sum().double()
            mesh = getattr(a, "device_mesh", None)
            sums[mesh] = sums[mesh] + product if mesh in sums else product
    return sum((float(s.full_tensor() if isinstance(s, DTensor) else s) for s in sums.values()), 0.0)


def length(gradient: Gradient) -> float:
    """The L2 norm, the same on every rank; collective where the gradient is sharded."""
    return math.sqrt(inner_product(gradient, gradient))


def cosine(one: Gradient, other: Gradient) -> float:
    """The cosine of the angle between two gradients; 0 if one of them is 0."""
    lengths = length(one) * length(other)
    return inner_product(one, other) / lengths if lengths else 0.0
