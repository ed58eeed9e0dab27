"""The area under a learning curve."""

import numpy as np
from jaxtyping import Float
from scipy import integrate


def area_under(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "*of n"]) -> Float[np.ndarray, "*of"] | None:
    """The mean height of a curve over its range, by the trapezoidal rule: area / (x_n - x_1).

    In units of `y`, so that a run that is at 0.5 all the time has 0.5. None for fewer than two places.
    """
    if len(x) < 2 or not x[-1] > x[0]:
        return None
    return np.asarray(integrate.trapezoid(y, x) / (x[-1] - x[0]))
