"""Packed rows by hand, and that nothing is lost in them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from grpo_pl.models import CausalLM, ValueHead
from grpo_pl.models.packing import WIDTH_STEP, Beginnings, best_fit, narrowest, pack

TOKENS = torch.tensor([[5, 6, 7, 2, 9], [5, 6, 8, 9, 0]])  # the state of the last token is not read
MASK = torch.tensor([[False, False, True, True, True], [False, False, True, True, False]])


def test_two_responses_share_their_prompt() -> None:
    layout = pack(TOKENS, MASK, row_tokens=5)
    assert layout.token_ids.shape == (1, WIDTH_STEP)
    assert layout.token_ids[:, :5].tolist() == [[5, 6, 7, 2, 8]]
    assert layout.positions[:, :5].tolist() == [[0, 1, 2, 3, 2]]
    assert layout.padding == (WIDTH_STEP - 5) / WIDTH_STEP
    assert layout.home.tolist() == [[0, 1, 2, 3, 0], [0, 1, 4, 0, 0]]
    assert layout.visible[0, 0, :5, :5].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_without_room_the_prompt_stands_twice() -> None:
    layout = pack(TOKENS, MASK, row_tokens=4)
    assert layout.token_ids[:, :4].tolist() == [[5, 6, 7, 2], [5, 6, 8, 0]]
    assert layout.home.tolist() == [[0, 1, 2, 3, 0], [WIDTH_STEP, WIDTH_STEP + 1, WIDTH_STEP + 2, 0, 0]]
    assert layout.visible[1, 0, 3].nonzero().tolist() == [[3]], "padding sees itself alone"


def test_another_prompt_in_the_row_is_not_seen() -> None:
    tokens = torch.tensor([[5, 6, 7, 4], [6, 9, 8, 4]])
    layout = pack(tokens, torch.tensor([[False, False, True, True]] * 2), row_tokens=6)
    assert layout.token_ids[:, :6].tolist() == [[5, 6, 7, 6, 9, 8]]
    assert layout.visible[0, 0, 5].nonzero()[:, 0].tolist() == [3, 4, 5]


def test_responses_share_what_they_begin_with() -> None:
    tokens = torch.tensor([[5, 6, 7, 2, 4], [5, 6, 7, 8, 4], [5, 6, 9, 4, 0], [5, 6, 7, 2, 3]])
    layout = pack(tokens, (tokens > 0) & (torch.arange(5) > 1), row_tokens=8)
    assert layout.token_ids[0, :6].tolist() == [5, 6, 7, 2, 8, 9]
    assert layout.home[:, :4].tolist() == [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 0], [0, 1, 2, 3]]
    assert layout.positions[0, :6].tolist() == [0, 1, 2, 3, 3, 2]
    assert layout.ends[0, :7].tolist() == [6, 6, 5, 4, 5, 6, 7], "the last one is padding"
    assert layout.visible[0, 0, 4].nonzero()[:, 0].tolist() == [0, 1, 2, 4]
    assert layout.visible[0, 0, 5].nonzero()[:, 0].tolist() == [0, 1, 5]


def group(number: int, prompt: int, response: int) -> Beginnings:
    """Responses of this length that share a prompt of that length."""
    return Beginnings(range(number), [prompt + response] * number, [0] + [prompt] * (number - 1))


def test_rows_are_as_narrow_as_their_number_allows() -> None:
    """Five responses of 20 tokens fit with their prompt of 10 into 128, but four a row need no more rows."""
    responses = group(12, 10, 20)
    assert best_fit(responses, 128).used == [110, 110, 50]
    assert narrowest(responses, 128).used == [90, 90, 90]
    assert (best_fit(responses, 128).width, narrowest(responses, 128).width) == (128, 96)


def test_a_prompt_whose_responses_do_not_fit_stands_in_two_rows() -> None:
    beginnings = Beginnings.of([[1] * 10 + [5] * 20, [3] * 60, [1] * 10 + [2] * 60])
    assert (beginnings.order, beginnings.common) == ([2, 0, 1], [0, 10, 0])
    assert best_fit(beginnings, 70).places == [(1, 0, 0), (2, 0, 0), (0, 0, 0)]
    assert best_fit(beginnings, 90).places == [(0, 10, 70), (1, 0, 0), (0, 0, 0)]


def test_of_two_rows_the_one_with_more_of_its_beginning_takes_a_sequence() -> None:
    beginnings = Beginnings.of([[1, 1, 1, 1], [1, 2, 2, 2], [1, 2, 3]])
    assert best_fit(beginnings, 6).places == [(0, 0, 0), (1, 0, 0), (1, 2, 4)]


SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=9), min_size=1, max_size=12)


@given(SEQUENCES, st.integers(1, 60))
def test_narrow_rows_are_no_more_and_no_wider(sequences: list[list[int]], row_tokens: int) -> None:
    beginnings, longest = Beginnings.of(sequences), max(map(len, sequences))
    widest, found = best_fit(beginnings, max(row_tokens, longest)), narrowest(beginnings, row_tokens)
    assert len(found.used) <= len(widest.used)
    assert longest <= found.width <= widest.width
    rows = [{b for b, place in enumerate(found.places) if place.row == row} for row in range(len(found.used))]
    different = [
        len({tuple(sequences[b][: t + 1]) for b in row for t in range(len(sequences[b]))}) for row in rows
    ]
    assert found.used == different, "every token stands once behind the tokens that it follows"


@given(SEQUENCES, st.integers(1, 60))
def test_every_token_has_a_home_with_its_own_past(sequences: list[list[int]], row_tokens: int) -> None:
    """Following `visible` back from a token gives exactly the sequence up to it, in order."""
    width = max(map(len, sequences))
    tokens = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    mask = (tokens > 0) & (torch.arange(width) > 0)
    layout = pack(tokens, mask, row_tokens)
    _, length = layout.token_ids.shape
    assert length < max(row_tokens, width) + WIDTH_STEP
    for row, sequence in enumerate(sequences):
        for t in range(len(sequence) - 1):
            r, s = divmod(int(layout.home[row, t]), length)
            seen = layout.visible[r, 0, s]
            assert layout.token_ids[r][seen].tolist() == sequence[: t + 1]
            assert layout.positions[r][seen].tolist() == list(range(t + 1))


def test_what_is_shared_has_the_numbers_and_the_gradient_of_each_alone(tiny_model: Path) -> None:
    tokens = torch.tensor(
        [[5, 6, 7, 2, 9], [5, 6, 7, 2, 9], [5, 6, 7, 8, 9], [5, 6, 7, 0, 0], [5, 9, 7, 2, 9]]
    )
    mask = torch.tensor([[0, 0, 1, 1, 1]] * 3 + [[0, 0, 1, 0, 0], [0, 1, 0, 1, 1]]).bool()
    weights = torch.arange(1.0, 26.0).view(5, 5)
    told = []
    for row_tokens in (None, 32):
        policy = CausalLM(str(tiny_model), row_tokens=row_tokens).build()
        scores = policy(tokens, mask, 0.7, "gradient")
        assert scores.entropy is not None
        (weights * (scores.logprobs + 0.3 * scores.entropy)).sum().backward()
        told.append([scores.logprobs, scores.entropy, *(p.grad for p in policy.parameters())])
    for padded, packed in zip(*told, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5 * float(padded.detach().abs().max()))


def test_padding_is_the_share_of_positions_without_a_token(tiny_model: Path) -> None:
    padded, packed = CausalLM(str(tiny_model)).build(), CausalLM(str(tiny_model), row_tokens=5).build()
    padded(TOKENS, MASK, 1.0)
    packed(TOKENS, MASK, 1.0)
    assert padded.padding == pytest.approx(1 / 10)  # the second response is one token shorter
    assert packed.padding == pytest.approx(27 / 32)


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


def test_observations_stand_in_packed_rows_and_are_seen_by_what_comes_later() -> None:
    layout = pack(EPISODES, SAMPLED, row_tokens=32)
    assert layout.token_ids[0, :13].tolist() == [5, 6, 7, 2, 30, 31, 9, 8, 2, 40, 9, 9, 2]
    for row, length in enumerate((7, 8, 6)):
        seen = layout.visible[0, 0, layout.home[row, length - 1]]
        assert layout.token_ids[0][seen].tolist() == EPISODES[row, :length].tolist()
        assert layout.positions[0][seen].tolist() == list(range(length))


def test_packed_rows_with_holes_have_the_log_probabilities_of_each_sequence_alone(tiny_model: Path) -> None:
    alone = CausalLM(str(tiny_model)).build()
    one_by_one = [
        alone(ids[None, :length], mask[None, :length], 0.7).logprobs[0][mask[:length]]
        for ids, mask, length in zip(EPISODES, SAMPLED, (8, 9, 7), strict=True)
    ]
    expected = torch.cat(one_by_one)
    for row_tokens in (None, 12, 32):
        policy = CausalLM(str(tiny_model), row_tokens=row_tokens).build()
        scores = policy(EPISODES, SAMPLED, 0.7)
        torch.testing.assert_close(scores.logprobs[SAMPLED], expected, rtol=1e-6, atol=1e-6)
        assert not scores.logprobs[~SAMPLED].any()
        other = EPISODES.clone()
        other[0, 4] = 77
        changed = (policy(other, SAMPLED, 0.7).logprobs - scores.logprobs).abs() > 1e-4
        assert changed.nonzero().tolist() == [[0, 6], [0, 7]], "its own row has read it"


def test_a_packed_critic_says_the_same_of_rows_with_holes(tiny_model: Path) -> None:
    values = []
    for row_tokens in (None, 32):
        critic = ValueHead(str(tiny_model), row_tokens=row_tokens).build()
        torch.nn.init.constant_(critic.head.weight, 0.5)
        values.append(critic(EPISODES, SAMPLED))
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)


def test_a_packed_critic_says_the_same(tiny_model: Path) -> None:
    said = []
    for row_tokens in (None, 64):
        critic = ValueHead(str(tiny_model), row_tokens=row_tokens).build()
        torch.nn.init.constant_(critic.head.weight, 0.5)
        said.append(critic(TOKENS, MASK))
    assert said[0].abs().sum() > 0
    assert torch.allclose(*said, atol=1e-5)


def test_rows_are_packed_with_positions_of_their_own(tmp_path: Path) -> None:
    """GPT-2 learns its positions: they must count within a sequence, not within a row."""
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    said = [
        CausalLM(str(tmp_path), row_tokens=row_tokens).build()(TOKENS, MASK, 1.0).logprobs
        for row_tokens in (None, 8)
    ]
    assert torch.allclose(*said, atol=1e-5)


def test_a_model_with_attention_in_a_window_is_refused(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, use_sliding_window=True, sliding_window=4, max_window_layers=1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="set row_tokens to null"):
        CausalLM(str(tmp_path), row_tokens=64).build()


def test_a_row_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="row_tokens=0"):
        CausalLM("x", row_tokens=0)
