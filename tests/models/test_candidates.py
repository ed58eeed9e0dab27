"""Candidates of a token are scored beside it, and may be all that the policy chose from."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from grpo_pl.models.candidates import candidate_logprobs
from grpo_pl.models.heads import LayerHead
from grpo_pl.models.language_model import at_each_token
from grpo_pl.types import Sequences, TokenScores

IDS = torch.tensor([[2, 0, 5], [1, 3, -1], [4, -1, -1]])
TARGETS = torch.tensor([0, 3, 4])


@dataclass
class Dense:
    """States, a head, and its logits at temperature 0.7, whole."""

    states: Tensor
    head: LayerHead

    @property
    def logits(self) -> Tensor:
        return self.head.logits(self.states, 0.7)


@pytest.fixture
def dense() -> Dense:
    torch.manual_seed(0)
    layer = nn.Linear(4, 6)
    return Dense(torch.randn(3, 4, requires_grad=True), LayerHead(layer, 1.0, None))


def scores(dense: Dense, chunk_tokens: int, **options: object):
    return candidate_logprobs(dense.states, TARGETS, IDS, dense.head, 0.7, chunk_tokens, **options)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7])
def test_candidates_and_chosen_tokens_have_the_log_probabilities_of_the_whole_vocabulary(dense, chunk_tokens):
    logprobs, entropy, candidates = scores(dense, chunk_tokens)
    every = dense.logits.log_softmax(-1)
    assert torch.allclose(logprobs, every[torch.arange(3), TARGETS])
    assert torch.allclose(candidates, torch.where(IDS >= 0, every.gather(-1, IDS.clamp(min=0)), 0.0))
    assert torch.allclose(entropy, -(every.exp() * every).sum(-1))


def test_renormalized_scores_are_those_of_the_distribution_over_the_candidates(dense):
    logprobs, entropy, candidates = scores(dense, 2, renormalized=True)
    assert torch.allclose(torch.where(IDS >= 0, candidates.exp(), 0.0).sum(-1), torch.ones(3))
    first = dense.logits[0, [2, 0, 5]].log_softmax(-1)
    assert torch.allclose(candidates[0], first)
    assert torch.allclose(logprobs[0], first[1])
    assert torch.allclose(entropy[0], -(first.exp() * first).sum())
    assert (logprobs[2], entropy[2]) == (0.0, 0.0)  # one candidate is certain


@pytest.mark.parametrize("renormalized", [False, True])
def test_gradients_are_those_of_whole_logits_in_any_chunks(dense, renormalized):
    torch.manual_seed(1)
    weights = torch.randn(3, 5)

    def total(columns) -> Tensor:
        return (torch.cat([column.reshape(3, -1) for column in columns], -1) * weights).sum()

    total(scores(dense, 2, entropy="gradient", renormalized=renormalized)).backward()
    ours, dense.states.grad = dense.states.grad, None
    allowed = torch.zeros(3, 6, dtype=torch.bool).scatter(-1, IDS.clamp(min=0), IDS >= 0)
    logits = dense.logits.masked_fill(~allowed, -1e30) if renormalized else dense.logits
    every = logits.log_softmax(-1)
    among = torch.where(IDS >= 0, every.gather(-1, IDS.clamp(min=0)), 0.0)
    total((every[torch.arange(3), TARGETS], -(every.exp() * every).sum(-1), among)).backward()
    assert torch.allclose(ours, dense.states.grad, atol=1e-6)


def test_without_rows_there_are_no_scores_and_a_gradient_of_zero(dense):
    logprobs, _, candidates = candidate_logprobs(dense.states[:0], TARGETS[:0], IDS[:0], dense.head, 0.7, 2)
    assert (logprobs.shape, candidates.shape) == ((0,), (0, 3))
    logprobs.sum().backward()
    assert float(dense.head.layer.weight.grad.abs().sum()) == 0.0


def test_candidates_stand_at_their_tokens_and_are_cut_and_put_together_with_them():
    mask = torch.tensor([[False, True, False, False], [False, True, True, True]])
    placed = at_each_token(torch.arange(1.0, 9.0, dtype=torch.float64).view(4, 2), mask)
    assert placed[1].tolist() == [[0, 0], [3, 4], [5, 6], [7, 8]]
    sequences = Sequences(token_ids=mask.long(), loss_mask=mask, temperature=1.0, candidates=placed.int())
    short = sequences.select([0])
    assert short.candidates.tolist() == [[[0, 0], [1, 2]]]
    parts = [TokenScores(logprobs=torch.ones(1, 2), candidates=short.candidates.float())]
    whole = TokenScores.assemble(parts, [[0]], like=torch.zeros(2, 4))
    assert whole.candidates.shape == (2, 4, 2)
    assert whole.candidates[0, :2].tolist() == [[0, 0], [1, 2]]
    assert whole.candidates[1].abs().sum() == 0
