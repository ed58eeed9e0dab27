"""The data of each rank, and the shards of a model's parameters, under any strategy."""

from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy

from grpo_pl.training.strategies import FSDP2Strategy


@dataclass(frozen=True)
class DataRanks:
    """The place of this process among those that get different data."""

    rank: int
    size: int
    copies: int
    """Processes that get the same data, because they compute each layer together."""

    def counted_once(self, total: torch.Tensor) -> torch.Tensor:
        """A sum over all processes with each copy counted once, of the same type."""
        return total.div(self.copies, rounding_mode=None if total.is_floating_point() else "floor")


def data_ranks(trainer: pl.Trainer) -> DataRanks:
    """The data of this rank: under tensor parallelism several ranks get the same."""
    sampler = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
    size = sampler["num_replicas"]
    return DataRanks(sampler["rank"], size, trainer.world_size // size)


class AttachedDataModule(pl.LightningDataModule):
    """A data module that knows its trainer and the data of its rank."""

    @property
    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None, "the trainer attaches itself before setup"
        return self.trainer

    @property
    def _ranks(self) -> DataRanks:
        return data_ranks(self._trainer)


def num_shards(trainer: pl.Trainer) -> int:
    """Parts that a model's parameters are divided into; 1 where every rank holds them whole."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDP2Strategy):
        return strategy.data_parallel_size // strategy.num_replicas * strategy.tensor_parallel_size
    return trainer.world_size if isinstance(strategy, FSDPStrategy) else 1
