"""The machine's limit, by hand."""

from pathlib import Path

import pytest
import torch

from grpo_pl.commands.bench.machine_limit import Machine, Network, Read, engine_seconds, update_seconds
from grpo_pl.models.loading import load_language_model

MACHINE = Machine(flops=1000.0, bandwidth=100.0)
SMALL = Network(trunk=10, head=5, attention=2)


def test_what_sequences_begin_with_is_read_once() -> None:
    one, other = ([1, 2, 3, 4], [False, False, True, True]), ([1, 2, 9, 4], [False, False, True, True])
    assert Read.of([one]) == (3, 1 + 2 + 3, 2), "the last token is scored, not read"
    assert Read.of([one, other]) == (4, 6 + 3, 4)
    assert Read.of([one, other, one]) == Read.of([one, other])
    longer = ([1, 2, 3, 4, 5], [False, False, True, True, True])
    assert Read.of([one, longer]) == (4, 10, 3)


def test_an_update_is_three_times_its_forward() -> None:
    read = Read(tokens=4, pairs=10, scored=2)
    assert SMALL.flops(read) == 2 * (10 * 4 + 5 * 2) + 4 * 2 * 10
    assert update_seconds(SMALL, [read, read], MACHINE) == 2 * 3 * 180 / 1000


def test_a_step_of_decoding_reads_the_weights_or_multiplies_for_as_long() -> None:
    """A prompt of 2 tokens; two responses of 1 and 3 tokens, so two steps, each with one under way."""
    prompt = 2 * (10 * 2 + 5 * 1) + 4 * 2 * (1 + 2)
    by_traffic = 2 * 15 * 4 / 100
    assert engine_seconds(SMALL, [[1, 2]], [1, 3], 4, MACHINE) == pytest.approx(prompt / 1000 + by_traffic)
    fast_memory = MACHINE._replace(bandwidth=1e9)
    by_products = 2 * 2 * 15 / 1000
    assert engine_seconds(SMALL, [[1, 2]], [1, 3], 4, fast_memory) == pytest.approx(
        prompt / 1000 + by_products
    )


def test_the_sizes_of_a_model_leave_out_what_is_looked_up(tiny_model: Path, tiny_untied_model: Path) -> None:
    tied, untied = (
        Network.of(load_language_model(str(path), "float32")) for path in (tiny_model, tiny_untied_model)
    )
    assert tied == untied
    model = load_language_model(str(tiny_model), "float32")
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert tied.trunk + tied.head == linear


def test_a_machine_is_measured() -> None:
    found = Machine.measured(torch.device("cpu"), torch.float32)
    assert found.flops > 0
    assert found.bandwidth > 0
