"""Sequences are read as the model's own forward reads each alone, with a cache or without."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_models import saved, tiny

from grpo_pl.models.loading import load_language_model
from grpo_pl.rollout.readers import CachedReader, WholeReader, right_reader
from grpo_pl.system.refusal import ConfigError

PROMPTS = [[5, 9, 33, 60], [71, 12]]
CHOSEN = torch.tensor([[7, 20], [50, 21], [8, 22]])
KINDS = {
    **dict.fromkeys(("llama", "gpt2", "gemma2", "bamba", "falcon_h1", "hyperclovax", "bloom"), CachedReader),
    **dict.fromkeys(("mamba", "mamba2", "rwkv", "recurrent_gemma", "xlstm"), WholeReader),  # another cache
    **dict.fromkeys(("bart", "moshi", "git"), WholeReader),  # changed by padding on the left
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_each_sequence_alone(kind: str) -> None:
    model = tiny(kind)
    reader_kind = right_reader(model, "x")
    assert reader_kind is KINDS[kind]
    with torch.no_grad():
        reader = reader_kind(model, PROMPTS)
        for read in range(len(CHOSEN) + 1):
            logits = reader.after(CHOSEN[read - 1]) if read else reader.first()
            for row, prompt in enumerate(PROMPTS):
                sequence = torch.tensor([prompt + CHOSEN[:read, row].tolist()])
                alone = model(input_ids=sequence, use_cache=False).logits[0, -1]
                assert torch.allclose(logits[row].log_softmax(-1), alone.log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_sequences_that_are_kept_are_read_on_as_alone(kind: str) -> None:
    model = tiny(kind)
    kept, prompts = [2, 0], [*PROMPTS, [8, 44, 13]]
    with torch.no_grad():
        reader = right_reader(model, "x")(model, prompts)
        reader.first()
        reader.after(torch.tensor([7, 20, 31]))
        assert reader.keep(kept)
        logits = reader.after(torch.tensor([50, 21]))
        for of_row, row, last in zip(logits, kept, (50, 21), strict=True):
            sequence = torch.tensor([[*prompts[row], (7, 20, 31)[row], last]])
            alone = model(input_ids=sequence, use_cache=False).logits[0, -1]
            assert torch.allclose(of_row.log_softmax(-1), alone.log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_equal_prompts_are_read_as_alone(kind: str) -> None:
    """Once where the cache can be told apart afterwards, which Gemma 2's cannot."""
    model, prompts = tiny(kind), [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    chosen = [7, 20, 31]
    with torch.no_grad():
        reader = CachedReader(model, prompts)
        first, second = reader.first(), reader.after(torch.tensor(chosen))
        for i, (prompt, last) in enumerate(zip(prompts, chosen, strict=True)):
            alone = model(input_ids=torch.tensor([[*prompt, last]]), use_cache=False).logits[0, -2:]
            read = torch.stack([first[i], second[i]])
            assert torch.allclose(read.log_softmax(-1), alone.log_softmax(-1), atol=1e-4)


def test_a_cache_of_another_kind_keeps_all_sequences() -> None:
    model = tiny("gemma2")
    with torch.no_grad():
        reader = CachedReader(model, PROMPTS)
        reader.first()
        assert not reader.keep([1])
        assert len(reader.after(torch.tensor([7, 20]))) == 2


def test_a_model_that_needs_more_than_tokens_is_refused(tmp_path: Path) -> None:
    model = load_language_model(saved(tiny("gemma4_assistant"), tmp_path), "float32")
    with pytest.raises(ConfigError, match=r"^pretrained=x: Gemma4AssistantForCausalLM cannot be called"):
        right_reader(model, "x")
