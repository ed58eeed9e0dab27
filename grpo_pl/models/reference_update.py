"""How the reference follows the policy."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from typing_extensions import override

from grpo_pl.system.refusal import ArgumentError, check_at_least


class ReferenceUpdate(ABC):
    """Moves the reference's weights after an iteration."""

    small_steps: ClassVar[bool] = False
    """Whether it moves by less than 16 bits can hold."""

    @abstractmethod
    def __call__(self, reference: nn.Module, weights: Iterable[tuple[str, Tensor]], iteration: int) -> None:
        """Change `reference` in place, after `iteration`, counted from 1 behind a critic's warm-up.

        `weights` are the policy's, whole and by the reference's names. Sharded ones are gathered
        collectively: every rank reads all of them, or none does.
        """


@final
class EveryN(ReferenceUpdate):
    """The policy becomes the reference every n iterations.

    Iterative GRPO: DeepSeekMath, arXiv:2402.03300, section 4.1.4.

    Args:
        iterations: Iterations for which a reference stays.
    """

    def __init__(self, iterations: int) -> None:
        check_at_least(1, iterations=iterations)
        self.iterations = iterations

    @override
    def __call__(self, reference: nn.Module, weights: Iterable[tuple[str, Tensor]], iteration: int) -> None:
        if iteration % self.iterations == 0:
            move(reference, weights, share=1.0)


@final
class EMA(ReferenceUpdate):
    """The reference is an exponential moving average of the policy: decay * reference + (1 - decay) * policy.

    The soft update of TR-DPO (Gorbatovskiy et al. 2024, arXiv:2404.09656; its alpha is 1 - decay) and
    the anchor of WARP (Ramé et al. 2024, arXiv:2406.16768). They move it every step or every few, we once an
    iteration. A decay of 0 is `EveryN(1)`.

    Args:
        decay: Share of the reference that stays each iteration, in [0, 1).
    """

    small_steps = True

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ArgumentError(
                f"decay={decay}: expected a number in [0, 1); for a reference that "
                "stays, leave the update out (null)"
            )
        self.decay = decay

    @override
    def __call__(self, reference: nn.Module, weights: Iterable[tuple[str, Tensor]], iteration: int) -> None:
        move(reference, weights, share=1 - self.decay)


@torch.no_grad()
def move(reference: nn.Module, weights: Iterable[tuple[str, Tensor]], share: float) -> None:
    """Move each parameter of the reference by a share of the way to the policy's weight."""
    parameters = dict(reference.named_parameters())
    for name, weight in weights:
        parameter = parameters.pop(name)
        weight = weight.to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):  # each rank has the whole weight and moves its own part
            mesh, placements = parameter.device_mesh, parameter.placements
            weight = distribute_tensor(weight, mesh, placements, src_data_rank=None)
        parameter.lerp_(weight, share)
    assert not parameters, f"the policy has no {sorted(parameters)}"
