"""The cache that appends in place gives what transformers' own cache gives, to the last bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from grpo_pl.models.growing_cache import SPARE, Room, grow_in_place, growing_layer
from grpo_pl.models.loading import load_language_model
from grpo_pl.rollout.readers import CachedReader


@pytest.mark.parametrize("lengths", [(3, 1, 1), (1, SPARE, 1), (2, SPARE + 5, 1)])
def test_a_room_holds_what_was_appended_in_its_order(lengths: tuple[int, ...]) -> None:
    parts = [torch.randn(2, 3, length, 4) for length in lengths]
    room = Room(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        assert torch.equal(room.append(part), torch.cat(parts[:i], -2))


def test_what_has_room_is_not_copied() -> None:
    room = Room(torch.zeros(1, 1, 2, 4))
    first, second = (room.append(torch.ones(1, 1, 1, 4)) for _ in range(2))
    assert first.data_ptr() == second.data_ptr()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_reads_the_same_to_the_bit(attention: str, tiny_model: Path) -> None:
    model = load_language_model(str(tiny_model), "float32", attention)
    tokens = torch.arange(3, 3 + 3 * (SPARE + 8)).remainder(300).view(3, -1)

    def logits(in_place: bool) -> Tensor:
        output, read = model(input_ids=tokens[:, :4], use_cache=True), []
        for i in range(4, tokens.shape[1]):
            if in_place:
                grow_in_place(output.past_key_values)
            states = output.past_key_values
            output = model(input_ids=tokens[:, i : i + 1], past_key_values=states, use_cache=True)
            read.append(output.logits)
        assert in_place == all(isinstance(layer, growing_layer()) for layer in states.layers)
        return torch.stack(read)

    assert torch.equal(logits(in_place=True), logits(in_place=False))


@torch.no_grad()
def test_the_reader_of_the_engine_appends_in_place(tiny_model: Path) -> None:
    reader = CachedReader(load_language_model(str(tiny_model), "float32"), [[3, 4], [5, 6, 7]])
    reader.first()
    places = []
    for _ in range(2):
        reader.after(torch.tensor([8, 9]))
        places.append(reader._cache.layers[0].keys.data_ptr())
    assert places[0] == places[1]
