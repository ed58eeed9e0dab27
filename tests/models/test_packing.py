"""Trees by hand, and that nothing is lost in them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from grpo_pl.models import CausalLM, ValueHead
from grpo_pl.models.packing import Beginnings, Layout, pack
from grpo_pl.system.refusal import ConfigError

TOKENS = torch.tensor([[5, 6, 7, 2, 9], [5, 6, 8, 9, 0]])  # the state of the last token is not read
MASK = torch.tensor([[False, False, True, True, True], [False, False, True, True, False]])


def seen(layout: Layout) -> list[list[int]]:
    """Which tokens of the row each one sees, by what its attention reads."""
    found: list[list[int]] = [[] for _ in layout.token_ids]
    rows = [
        [(keys[g], range(t + 1) if visible is None else visible[g, 0, t].nonzero()[:, 0].tolist())]
        for queries, keys, visible in layout.tree.batches
        for g in range(len(queries))
        for t in range(queries.shape[1])
    ]
    for token, place in enumerate(layout.tree.places.tolist()):
        ((keys, which),) = rows[place]
        found[token] = [int(keys[k]) for k in which]
    return found


def test_two_responses_share_their_prompt() -> None:
    layout = pack(TOKENS, MASK)
    assert layout.token_ids.tolist() == [5, 6, 7, 2, 8]
    assert layout.positions.tolist() == [0, 1, 2, 3, 2]
    assert layout.home.tolist() == [[0, 1, 2, 3, 0], [0, 1, 4, 0, 0]]
    assert seen(layout) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]


def test_another_prompt_in_the_row_is_not_seen() -> None:
    tokens = torch.tensor([[5, 6, 7, 4], [6, 9, 8, 4]])
    layout = pack(tokens, torch.tensor([[False, False, True, True]] * 2))
    assert layout.token_ids.tolist() == [5, 6, 7, 6, 9, 8]
    assert seen(layout)[5] == [3, 4, 5]


def test_responses_share_what_they_begin_with() -> None:
    tokens = torch.tensor([[5, 6, 7, 2, 4], [5, 6, 7, 8, 4], [5, 6, 9, 4, 0], [5, 6, 7, 2, 3]])
    layout = pack(tokens, (tokens > 0) & (torch.arange(5) > 1))
    assert layout.token_ids.tolist() == [5, 6, 7, 2, 8, 9]
    assert layout.home[:, :4].tolist() == [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 0], [0, 1, 2, 3]]
    assert layout.positions.tolist() == [0, 1, 2, 3, 3, 2]
    assert seen(layout)[3:] == [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5]]


def test_what_sequences_have_in_common_is_found_between_neighbours() -> None:
    beginnings = Beginnings.of([[1] * 10 + [5] * 20, [3] * 60, [1] * 10 + [2] * 60])
    assert (beginnings.order, beginnings.common) == ([2, 0, 1], [0, 10, 0])
    assert beginnings.lengths == [30, 60, 70]


SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=40), min_size=1, max_size=12)


def batch_of(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Sequences padded on the right, all but the first token of each a response's."""
    width = max(map(len, sequences))
    tokens = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    return tokens, (tokens > 0) & (torch.arange(width) > 0)


@given(SEQUENCES)
def test_every_token_has_a_home_with_its_own_past(sequences: list[list[int]]) -> None:
    """What a token sees is exactly the sequence up to it, in order; each beginning stands in the row once."""
    layout = pack(*batch_of(sequences))
    sees = seen(layout)
    for row, sequence in enumerate(sequences):
        for t in range(len(sequence) - 1):
            past = sees[int(layout.home[row, t])]
            assert layout.token_ids[past].tolist() == sequence[: t + 1]
            assert layout.positions[past].tolist() == list(range(t + 1))
    different = {tuple(sequence[: t + 1]) for sequence in sequences for t in range(len(sequence) - 1)}
    assert len(layout.token_ids) == len(different)


def numbers_of(attention: str, folder: Path, tokens: Tensor, mask: Tensor) -> list[Tensor]:
    """Log-probabilities, entropies and gradients of a loss of both."""
    policy = CausalLM(str(folder), attention=attention).build()
    scores = policy(tokens, mask, 0.7, "gradient")
    assert scores.entropy is not None
    weights = torch.arange(1.0, 1 + tokens.numel()).view(tokens.shape)
    (weights * (scores.logprobs + 0.3 * scores.entropy)).sum().backward()
    return [scores.logprobs, scores.entropy, *(p.grad for p in policy.parameters() if p.grad is not None)]


def test_what_is_shared_has_the_numbers_and_the_gradient_of_each_alone(tiny_model: Path) -> None:
    tokens = torch.tensor(
        [[5, 6, 7, 2, 9], [5, 6, 7, 2, 9], [5, 6, 7, 8, 9], [5, 6, 7, 0, 0], [5, 9, 7, 2, 9]]
    )
    mask = torch.tensor([[0, 0, 1, 1, 1]] * 3 + [[0, 0, 1, 0, 0], [0, 1, 0, 1, 1]]).bool()
    told = [numbers_of(attention, tiny_model, tokens, mask) for attention in ("sdpa", "tree")]
    for padded, tree in zip(*told, strict=True):
        torch.testing.assert_close(tree, padded, rtol=1e-5, atol=1e-5 * float(padded.detach().abs().max()))


@pytest.mark.parametrize("prompt", [3, 30, 90])
def test_branches_of_many_lengths_have_the_numbers_of_sequences_alone(tiny_model: Path, prompt: int) -> None:
    """Long branches are read with what they follow, short ones behind it."""
    draw = torch.Generator().manual_seed(prompt)
    rows = [
        torch.randint(3, 300, (n,), generator=draw).tolist()
        for n in (prompt, 5, 17, 40, 64, 64, prompt, 2, 33)
    ]
    groups = [rows[0] + rows[n] for n in range(1, 6)] + [rows[6] + rows[n] for n in (7, 8)]
    tokens, _ = batch_of(groups)
    mask = (tokens > 0) & (torch.arange(tokens.shape[1]) >= prompt)
    told = [numbers_of(attention, tiny_model, tokens, mask) for attention in ("sdpa", "tree")]
    for padded, tree in zip(*told, strict=True):
        torch.testing.assert_close(tree, padded, rtol=1e-4, atol=1e-5 * float(padded.detach().abs().max()))


def test_padding_is_the_share_of_positions_without_a_token(tiny_model: Path) -> None:
    padded, tree = (CausalLM(str(tiny_model), attention=name).build() for name in ("sdpa", "tree"))
    padded(TOKENS, MASK, 1.0)
    tree(TOKENS, MASK, 1.0)
    assert padded.padding == pytest.approx(1 / 10)  # the second response is one token shorter
    assert tree.padding == 0


EPISODES = torch.tensor(
    [
        [5, 6, 7, 2, 30, 31, 9, 2, 0],  # two turns with an observation between them
        [5, 6, 8, 2, 40, 9, 9, 2, 4],  # the same prompt, three turns, the last behind its observation at once
        [50, 5, 6, 8, 30, 12, 13, 0, 0],  # a forked history: its turns before are context
    ]
)
SAMPLED = torch.tensor(
    [
        [0, 0, 1, 1, 0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0, 1, 0, 1, 1],
        [0, 0, 0, 0, 0, 1, 1, 0, 0],
    ]
).bool()  # fmt: skip


def test_observations_stand_in_the_tree_and_are_seen_by_what_comes_later() -> None:
    layout = pack(EPISODES, SAMPLED)
    assert layout.token_ids[:13].tolist() == [5, 6, 7, 2, 30, 31, 9, 8, 2, 40, 9, 9, 2]
    for row, length in enumerate((7, 8, 6)):
        past = seen(layout)[int(layout.home[row, length - 1])]
        assert layout.token_ids[past].tolist() == EPISODES[row, :length].tolist()
        assert layout.positions[past].tolist() == list(range(length))


def test_a_tree_with_holes_has_the_log_probabilities_of_each_sequence_alone(tiny_model: Path) -> None:
    alone = CausalLM(str(tiny_model), attention="sdpa").build()
    one_by_one = [
        alone(ids[None, :length], mask[None, :length], 0.7).logprobs[0][mask[:length]]
        for ids, mask, length in zip(EPISODES, SAMPLED, (8, 9, 7), strict=True)
    ]
    expected = torch.cat(one_by_one)
    for attention in ("sdpa", "tree"):
        policy = CausalLM(str(tiny_model), attention=attention).build()
        scores = policy(EPISODES, SAMPLED, 0.7)
        torch.testing.assert_close(scores.logprobs[SAMPLED], expected, rtol=1e-6, atol=1e-6)
        assert not scores.logprobs[~SAMPLED].any()
        other = EPISODES.clone()
        other[0, 4] = 77
        changed = (policy(other, SAMPLED, 0.7).logprobs - scores.logprobs).abs() > 1e-4
        assert changed.nonzero().tolist() == [[0, 6], [0, 7]], "its own row has read it"


@pytest.mark.parametrize(("tokens", "mask"), [(TOKENS, MASK), (EPISODES, SAMPLED)], ids=["plain", "holes"])
def test_a_critic_says_the_same_of_a_tree(tiny_model: Path, tokens: Tensor, mask: Tensor) -> None:
    said = []
    for attention in ("sdpa", "tree"):
        critic = ValueHead(str(tiny_model), attention=attention).build()
        torch.nn.init.constant_(critic.head.weight, 0.5)
        said.append(critic(tokens, mask))
    assert said[0].abs().sum() > 0
    torch.testing.assert_close(*said, rtol=1e-5, atol=1e-5)


def test_positions_count_within_a_sequence(tmp_path: Path) -> None:
    """GPT-2 learns its positions: they must count within a sequence, not within the row."""
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    said = [
        CausalLM(str(tmp_path), attention=attention).build()(TOKENS, MASK, 1.0).logprobs
        for attention in ("sdpa", "tree")
    ]
    assert torch.allclose(*said, atol=1e-5)


def test_a_model_with_attention_in_a_window_reads_padded_rows(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, use_sliding_window=True, sliding_window=4, max_window_layers=1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    assert CausalLM(str(tmp_path)).build().language_model.config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match=r"attention=tree: .* the whole sequence: set attention to null"):
        CausalLM(str(tmp_path), attention="tree").build()
