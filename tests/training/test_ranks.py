"""Which data a rank gets, and which part of each model."""

import lightning.pytorch as pl
import pytest
import torch

from grpo_pl.training.ranks import DataRanks, data_ranks, num_shards
from grpo_pl.training.strategies import FSDP2Strategy


def trainer(devices: int, strategy: pl.strategies.Strategy | str) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False)


@pytest.mark.parametrize(
    ("arguments", "size", "copies", "shards"),
    [
        ({}, 8, 1, 8),
        ({"replicas": 2}, 8, 1, 4),
        ({"tensor_parallel_size": 2}, 4, 2, 8),
        ({"replicas": 8}, 8, 1, 1),
    ],
)
def test_who_gets_which_data_and_which_part(
    arguments: dict[str, int], size: int, copies: int, shards: int
) -> None:
    planned = trainer(8, FSDP2Strategy(**arguments))
    ranks = data_ranks(planned)
    assert (ranks.rank, ranks.size, ranks.copies, num_shards(planned)) == (0, size, copies, shards)


def test_a_sum_over_ranks_that_share_layers_counts_each_sample_once() -> None:
    pairs = DataRanks(rank=0, size=2, copies=2)
    assert pairs.counted_once(torch.tensor([3.0, 0.5])).tolist() == [1.5, 0.25]
    count = pairs.counted_once(torch.tensor(6))
    assert (int(count), count.dtype) == (3, torch.int64)


def test_without_ranks_there_is_one() -> None:
    assert data_ranks(trainer(1, "auto")).size == num_shards(trainer(1, "auto")) == 1
