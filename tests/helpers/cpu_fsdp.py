"""FSDPStrategy on a CPU, for tests alone: Lightning and torch take it for GPUs only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import enable_wrap

CPU = torch.device("cpu")


class CPUFSDPStrategy(FSDPStrategy):
    """The same with the device that torch's FSDP would refuse to guess."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(state_dict_type="sharded", **kwargs)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        with enable_wrap(wrapper_cls=FullyShardedDataParallel, device_id=CPU, **self.kwargs):
            yield
