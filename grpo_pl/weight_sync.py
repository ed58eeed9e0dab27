"""The trainer's parameters on their way to the engine."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter whole, one at a time, under its Hugging Face name; tied weights once.

    Collective where parameters are sharded: every rank of the data-parallel group must run the iterator to
    its end.
    """
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
