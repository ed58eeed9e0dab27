"""What the scripts that run peers share: stubs for imports, float64 throughout, gradients."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from parity_batches import Batch
from torch import Tensor

Outputs = dict[str, Tensor]
USUAL = ("ragged", "silent")


@dataclass(frozen=True)
class Entry:
    """One formula of a peer: how its own code is run on a batch."""

    function: str
    """Where it stands in the peer."""
    how: str
    """`imported`: the function itself; `unbound`: a method of a trainer, `self` being a bare namespace."""
    run: Callable[[Batch], Outputs]
    parameters: dict[str, Any] = field(default_factory=dict)
    batches: tuple[str, ...] = USUAL


class _Stub(mock.MagicMock):
    __path__ = ()
    __spec__ = None


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        if any(name == stub or name.startswith(f"{stub}.") for stub in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _Stub(name=spec.name)
        module.__name__, module.__file__ = spec.name, None
        return module  # type: ignore[return-value]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: a stub has every attribute."""


def stub(*names: str) -> None:
    """Let imports of these packages succeed: a peer's formulas need none of them."""
    sys.meta_path.insert(0, _Stubs(names))


@contextmanager
def in_float64() -> Iterator[None]:
    """While it runs every float32 that a peer asks for is a float64: what is compared is the formula."""
    torch.set_default_dtype(torch.float64)
    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(np, "float32", np.float64),
    ):
        yield
    torch.set_default_dtype(torch.float32)


def differentiate(loss_of: Callable[[Tensor], Tensor], logprobs: Tensor) -> Outputs:
    """A loss and its gradient with respect to the log-probabilities (or what else it is a function of)."""
    leaf = logprobs.clone().requires_grad_()
    loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return {"loss": loss.detach(), "gradient": gradient}


def token_by_token(loss_of: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """The loss of each token: that of a mask with this token alone, of which the peer's mean is one token.

    Only for losses in which a token's loss does not depend on the others of its response.
    """
    out = torch.zeros(mask.shape)
    for place in mask.nonzero().tolist():
        alone = torch.zeros_like(mask)
        alone[tuple(place)] = True
        out[tuple(place)] = loss_of(alone).detach()
    return out
