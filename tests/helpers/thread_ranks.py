"""Several ranks as threads of this process, with a sum over ranks that waits for all of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
WAIT_S = 60


def on_ranks(size: int, run: Callable[[int, Callable[[Tensor], Tensor]], Result]) -> list[Result]:
    """What `run(rank, sum_over_ranks)` returns on each rank; fails where one of them sums once more often."""
    gathered: list[Tensor] = [torch.zeros(())] * size
    together = Barrier(size, timeout=WAIT_S)

    def sum_from(rank: int) -> Callable[[Tensor], Tensor]:
        def sum_over_ranks(values: Tensor) -> Tensor:
            gathered[rank] = values
            together.wait()
            total = torch.stack(gathered).sum(0)
            together.wait()
            return total

        return sum_over_ranks

    with ThreadPoolExecutor(size) as threads:
        return [*threads.map(lambda rank: run(rank, sum_from(rank)), range(size))]
