"""Numbers that are not finite, found without asking the device for any of them."""

import torch
from jaxtyping import Float
from torch import Tensor


def one_if_finite(*numbers: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1 if all numbers are finite, else NaN.

    A loss times this is the same to the last bit, or has NaN for its gradient with respect to all that it
    depends on: so each rank learns from the norm of the gradient that some number of another is not finite.
    """
    return 1 + (0 * torch.stack([number.detach().float() for number in numbers])).sum()
