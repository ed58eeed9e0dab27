"""Float32 masters of weights of 16 bits: products read the weights, the optimizer moves the masters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

MASTER = "master"
"""The master's name in the state of its parameter."""
Groups = list[dict[str, Any]]


class MasterWeights(Optimizer):
    """Lets another optimizer move float32 copies of 16-bit parameters, which then follow, rounded.

    A step of Adam is about the learning rate, which 8 bits of a weight would round away; so mixed precision
    keeps float32 masters (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1). Autocast makes 16-bit
    copies of them in each forward; here the parameters are these copies, made once a step, and their
    gradients have 16 bits too, half of the memory. The sum over micro-batches is rounded to 8 bits each time.

    The state of a parameter, in checkpoints too, is that of the other optimizer and the master. Parameters of
    float32 are their own masters.

    Args:
        groups: Parameter groups, as for any optimizer.
        factory: Makes the other optimizer of groups of masters.
    """

    def __init__(self, groups: Groups, factory: Callable[[Groups], Optimizer]) -> None:
        super().__init__(groups, {})
        self.masters = {p: p if p.dtype == torch.float32 else p.detach().float() for p in self._parameters()}
        self.inner = factory([group | {"params": self._masters_of(group)} for group in self.param_groups])
        self.defaults = self.inner.defaults
        self._show()

    def _parameters(self) -> Iterable[nn.Parameter]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def _masters_of(self, group: dict[str, Any]) -> list[Tensor]:
        return [self.masters[parameter] for parameter in group["params"]]

    def _show(self) -> None:
        """Make the settings and the state of the other optimizer those of this one."""
        for group, of_inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update(of_inner | {"params": group["params"]})
        for parameter, master in self.masters.items():
            if state := self.inner.state.get(master):
                self.state[parameter] = state if master is parameter else state | {MASTER: master}

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step on the masters; the gradients of 16 bits are gone after it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, of_inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            of_inner.update(group | {"params": of_inner["params"]})
        copied = {p: master for p, master in self.masters.items() if master is not p}
        for parameter, master in copied.items():
            if parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None
        self.inner.step()
        for parameter, master in copied.items():
            if master.grad is not None:
                parameter.copy_(master)
                master.grad = None
        self._show()
        return loss

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state with masters; torch's own way would round them to their parameters' type."""
        states, masters = {}, {}
        for index, state in state_dict["state"].items():
            states[index] = {name: value for name, value in state.items() if name != MASTER}
            masters[index] = state.get(MASTER)
        self.inner.load_state_dict(state_dict | {"state": states})
        for index, parameter in enumerate(self._parameters()):
            if (master := masters.get(index)) is not None:
                self.masters[parameter].copy_(master)
                parameter.data.copy_(master)
        self._show()


def with_masters(factory: Callable[[Groups], Optimizer], groups: Groups) -> Optimizer:
    """An optimizer of parameter groups: with masters, if some of the parameters have 16 bits."""
    if any(p.dtype != torch.float32 for group in groups for p in group["params"]):
        return MasterWeights(groups, factory)
    return factory(groups)
