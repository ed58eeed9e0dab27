"""What tests of numbers share: float64, small numbers of examples, and values that binary holds exactly."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

F64 = torch.float64
few = settings(max_examples=40, derandomize=True)
eighths = st.integers(-40, 40).map(lambda i: i / 8)  # exact in binary, so that sums are exact


def f64(values: Sequence) -> Tensor:
    return torch.tensor(values, dtype=F64)


def close(actual: Tensor, expected: Sequence | np.ndarray | Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
