"""Log-probabilities against transformers' own logits, and what must not change them."""

import math
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from grpo_pl.models import CausalLM, ValueHead
from grpo_pl.models.folders import resolve_pretrained
from grpo_pl.models.heads import LayerHead
from grpo_pl.models.loading import load_language_model, transformer_blocks
from grpo_pl.models.logprobs import chunked_logprobs, even_chunks
from grpo_pl.system.memory import forget_peak, peak_gib, release_free_memory


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three sequences with prompts of 3, 5 and 4 tokens and responses of 7, 2 and 5."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 300, (3, 10), generator=generator)
    mask = torch.zeros(3, 10, dtype=torch.bool)
    for row, (start, length) in enumerate(((3, 7), (5, 2), (4, 5))):
        mask[row, start : start + length] = True
        tokens[row, start + length :] = 0
    return tokens, mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
def test_logprobs_and_entropy_are_those_of_the_full_logits(
    tiny_model: Path, temperature: float, chunk_tokens: int
) -> None:
    tokens, mask = batch()
    with torch.no_grad():
        model = CausalLM(str(tiny_model), chunk_tokens=chunk_tokens).build()
        said = model(tokens, mask, temperature, entropy="value")
        logits = AutoModelForCausalLM.from_pretrained(tiny_model)(tokens).logits[:, :-1] / temperature
    expected = logits.log_softmax(-1)
    chosen = expected.gather(-1, tokens[:, 1:, None])[..., 0]
    assert torch.allclose(said.logprobs[:, 1:][mask[:, 1:]], chosen[mask[:, 1:]], atol=1e-5)
    entropy = -(expected.exp() * expected).sum(-1)
    assert torch.allclose(said.entropy[:, 1:][mask[:, 1:]], entropy[mask[:, 1:]], atol=1e-5)
    assert (said.logprobs[~mask] == 0).all()


def test_the_gradient_is_that_of_the_full_logits(tiny_model: Path) -> None:
    tokens, mask = batch()
    ours, theirs = (
        CausalLM(str(tiny_model), chunk_tokens=3).build(),
        load_language_model(str(tiny_model), "float32"),
    )
    weights = torch.linspace(-1, 1, int(mask.sum()))
    (ours(tokens, mask, 0.8).logprobs[mask] * weights).sum().backward()
    chosen = (theirs(tokens).logits[:, :-1] / 0.8).log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    (chosen[mask[:, 1:]] * weights).sum().backward()
    for (name, a), b in zip(ours.language_model.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-4 * float(b.grad.abs().max())), name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_tree_changes_neither_logprobs_nor_gradients(tiny_model: Path, attention: str) -> None:
    tokens, mask = batch()
    tokens, mask = tokens[[0, 1, 0, 1, 1, 2]].clone(), mask[[0, 1, 0, 1, 1, 2]]
    tokens[2, 3:10] = torch.arange(20, 27)  # another response to the first prompt
    tokens[3, :4] = tokens[1, :4]
    results = []
    for one in (attention, "tree"):
        model = CausalLM(str(tiny_model), attention=one).build()
        logprobs = model(tokens, mask, 0.9).logprobs
        (logprobs * torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)).sum().backward()
        results.append((logprobs, [p.grad for p in model.parameters()]))
    (plain, plain_gradients), (shared, shared_gradients) = results
    assert torch.allclose(plain, shared, atol=1e-5)
    for a, b in zip(plain_gradients, shared_gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


def test_no_logits_of_a_whole_batch_ever_exist(tiny_model: Path) -> None:
    """Of 84 tokens 4 at a time, and their gradient in the place of them."""
    model = CausalLM(str(tiny_model), chunk_tokens=4).build()
    tokens, mask = (x.repeat(6, 1) for x in batch())
    largest: Counter[torch.dtype] = Counter()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (320,) and out.shape != (64, 320):
                largest[out.dtype] = max(largest[out.dtype], math.prod(out.shape[:-1]))
            return out

    with Watch():
        with torch.autocast("cpu", torch.bfloat16):
            logprobs = model(tokens, mask, 1.0).logprobs
        logprobs.sum().backward()
    assert largest == {torch.float32: 4, torch.bfloat16: 4}


def test_a_second_backward_finds_what_the_first_one_found(tiny_untied_model: Path) -> None:
    """Its logits are made again: the gradient of the first one stands in their place."""
    model = load_language_model(str(tiny_untied_model), "float32")
    states = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logprobs, _ = chunked_logprobs(states, torch.arange(7), LayerHead.of(model), 0.7, 3, None)
    wanted = [states, model.lm_head.weight]
    first, second = (torch.autograd.grad(logprobs.sum(), wanted, retain_graph=True) for _ in "12")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("rows", "most", "sizes"), [(0, 4, []), (3, 4, [3]), (9, 4, [3, 3, 3]), (8, 4, [4, 4])]
)
def test_chunks_are_few_and_even(rows: int, most: int, sizes: list[int]) -> None:
    assert [chunk.stop - chunk.start for chunk in even_chunks(rows, most)] == sizes


class OtherHead(nn.Linear):
    """A head that `LinearLogprobs` does not know, so that autograd derives it."""


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entropy", [None, "value", "gradient"])
def test_a_plain_head_says_and_learns_what_autograd_derives(
    tiny_untied_model: Path, entropy: str | None, bias: bool, dtype: torch.dtype | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, targets = torch.randn(70, 64, generator=generator), torch.arange(70)  # more than the head is wide
    found = []
    for kind in (nn.Linear, OtherHead):
        model = load_language_model(str(tiny_untied_model), "float32")
        head = kind(64, 320, bias=bias)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
        model.set_output_embeddings(head)
        states = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            logprobs, entropies = chunked_logprobs(states, targets, LayerHead.of(model), 0.7, 3, entropy)
        objective = (logprobs * torch.linspace(-1, 2, 70)).sum()
        if entropy == "gradient":
            objective = objective + (entropies * torch.linspace(2, -1, 70)).sum()
        objective.backward()
        gradients = [states.grad, *(p.grad for p in head.parameters())]
        found.append([logprobs, *([] if entropies is None else [entropies]), *gradients])
    assert len(found[0]) == 3 + bias + (entropy is not None)
    for ours, theirs in zip(*found, strict=True):
        tolerance = 1e-5 if dtype is None else 2e-2  # autograd adds up the gradients of chunks in bfloat16
        assert torch.allclose(ours, theirs, atol=tolerance * float(theirs.abs().max()))


def test_a_head_without_tokens_has_a_gradient_all_the_same(tiny_untied_model: Path) -> None:
    """Without one, ranks that have tokens would wait for it."""
    model = load_language_model(str(tiny_untied_model), "float32")
    states = torch.zeros(0, 64, requires_grad=True)
    logprobs, _ = chunked_logprobs(states, torch.arange(0), LayerHead.of(model), 1.0, 3, None)
    logprobs.sum().backward()
    assert torch.equal(model.lm_head.weight.grad, torch.zeros(320, 64))


def test_the_peak_does_not_grow_with_the_vocabulary_times_the_sequence(tmp_path: Path) -> None:
    """All logits of this batch would be 0.25 GiB, and 1 GiB with a vocabulary four times larger.

    With them (`chunk_tokens=4096`) the peak grows by 2.2 GiB, with chunks by 0.2.
    """
    peaks = []
    for vocabulary in (32_768, 131_072):
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 128}
        GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes)).save_pretrained(
            tmp_path / str(vocabulary)
        )
        model = CausalLM(str(tmp_path / str(vocabulary)), chunk_tokens=64).build()
        tokens = torch.randint(3, 300, (16, 128), generator=torch.Generator().manual_seed(0))
        mask = torch.arange(128).expand(16, 128) >= 1
        release_free_memory()
        before = psutil.Process().memory_info().rss / 2**30
        forget_peak()
        model(tokens, mask, 1.0).logprobs.sum().backward()
        peaks.append(peak_gib() - before)
    assert peaks[1] - peaks[0] < 0.5


def test_padding_and_neighbours_change_nothing(tiny_model: Path) -> None:
    model = CausalLM(str(tiny_model)).build()
    tokens, mask = batch()
    with torch.no_grad():
        together = model(tokens, mask, 1.0).logprobs
        wider = model(
            torch.nn.functional.pad(tokens, (0, 9), value=77), torch.nn.functional.pad(mask, (0, 9)), 1.0
        ).logprobs
        order = torch.tensor([2, 0, 1])
        permuted = model(tokens[order], mask[order], 1.0).logprobs
        alone = model(tokens[1:2, :7], mask[1:2, :7], 1.0).logprobs
    assert torch.allclose(wider[:, :10], together, atol=1e-5)
    assert torch.allclose(permuted, together[order], atol=1e-5)
    assert torch.allclose(alone[0], together[1, :7], atol=1e-5)


def test_a_model_with_dropout_gives_the_same_twice(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.5)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = CausalLM(str(tmp_path)).build()
    tokens, mask = batch()
    assert model.training
    assert torch.equal(model(tokens, mask, 1.0).logprobs, model(tokens, mask, 1.0).logprobs)


def test_gradient_checkpointing_changes_no_gradient(tiny_model: Path) -> None:
    tokens, mask = batch()
    gradients = []
    for checkpointing in (False, True):
        model = CausalLM(str(tiny_model), gradient_checkpointing=checkpointing).build()
        model(tokens, mask, 1.0).logprobs.sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_compiled_blocks_say_the_same(tiny_model: Path) -> None:
    tokens, mask = batch()
    results = []
    for backend in (None, "aot_eager"):  # inductor takes a minute of C++ compiler
        model = CausalLM(str(tiny_model), compile=backend).build()
        logprobs = model(tokens, mask, 1.0).logprobs
        logprobs.sum().backward()
        results.append([logprobs, *(p.grad for p in model.parameters())])
        compiled = [block._compiled_call_impl is not None for block in transformer_blocks(model)]
        assert compiled == [backend is not None] * 2
    (logprobs, *gradients), (same, *others) = results
    assert torch.allclose(logprobs, same, atol=1e-5)
    for a, b in zip(gradients, others, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


def test_a_value_head_starts_at_zero_and_sees_only_what_comes_before(tiny_model: Path) -> None:
    critic = ValueHead(str(tiny_model)).build()
    tokens, mask = batch()
    assert (critic(tokens, mask) == 0).all()
    torch.nn.init.normal_(critic.head.weight)
    values = critic(tokens, mask)
    changed = tokens.clone()
    changed[0, 5] += 1
    moved = (critic(changed, mask) != values)[0]
    assert not moved[:6].any(), "the value before token 5 must not know token 5"
    assert moved[6:10].any()


def test_a_folder_goes_before_the_cache_and_the_cache_before_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert resolve_pretrained(str(tiny_model)) == str(tiny_model)
    assert resolve_pretrained("some/model") == "some/model"
    kept = tmp_path / "grpo_pl" / "models" / "some" / "model"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    assert resolve_pretrained("some/model") == str(kept)
