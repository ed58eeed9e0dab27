"""A policy that chooses from a fixed support: its gradient and its KL, by enumeration of every response.

The policy has a table of logits: one row for the empty prefix, and one for each first token. Each row has the
support that top-p or top-k gave it when the response was drawn. Nothing is sampled.
"""

import itertools

import pytest
import torch
from helpers.exact import close
from torch import Tensor, nn

from grpo_pl.losses.kl import KLInLoss
from grpo_pl.losses.surrogates import ClippedSurrogate
from grpo_pl.models.candidates import candidate_logprobs
from grpo_pl.models.heads import LayerHead
from grpo_pl.models.logprobs import chunked_logprobs
from grpo_pl.rollout.support import kept_tokens, tokens_of
from grpo_pl.types import Experience

VOCABULARY, TEMPERATURE = 4, 0.8
PREFIXES = 1 + VOCABULARY


class Truncated:
    """Two tokens from a table of logits, each from the likeliest of its row alone."""

    def __init__(self, top_p: float, top_k: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.table = torch.randn(VOCABULARY, PREFIXES, generator=generator).requires_grad_()
        self.reference = torch.randn(VOCABULARY, PREFIXES, generator=generator)
        kept = kept_tokens(self.table.detach().T / TEMPERATURE, top_p, top_k)
        self.supports = nn.utils.rnn.pad_sequence([*map(tokens_of, kept)], True, -1)
        pairs = itertools.product(range(VOCABULARY), repeat=2)
        self.responses = [(a, b) for a, b in pairs if kept[0, a] and kept[1 + a, b]]
        self.prefixes = torch.tensor([[0, 1 + a] for a, _ in self.responses])
        self.tokens = torch.tensor(self.responses)
        self.rewards = torch.randn(len(self.responses), generator=generator)
        self.kept = kept

    def logprobs(self, table: Tensor, *, among: bool = True) -> Tensor:
        """Log-probabilities [R, 2] of the tokens of each response, as the trainer computes them."""
        layer = nn.Linear(PREFIXES, VOCABULARY, bias=False)
        layer.weight = nn.Parameter(table.detach())
        del layer.weight
        layer.weight = table  # of the graph
        states, targets = torch.eye(PREFIXES)[self.prefixes.flatten()], self.tokens.flatten()
        head = LayerHead(layer, 1.0, None)
        if not among:
            return chunked_logprobs(states, targets, head, TEMPERATURE, 3, None)[0].view(-1, 2)
        supports = self.supports[self.prefixes.flatten()]
        scores = candidate_logprobs(states, targets, supports, head, TEMPERATURE, 3, renormalized=True)
        return scores.logprobs.view(-1, 2)

    def policy(self, table: Tensor) -> Tensor:
        """The distribution of the truncated policy after each prefix, written down directly."""
        return (table.T / TEMPERATURE).masked_fill(~self.kept, -torch.inf).softmax(-1)

    @property
    def expected_reward(self) -> Tensor:
        """The sum over responses of probability times reward."""
        p = self.policy(self.table)[self.prefixes, self.tokens].prod(-1)
        return (p * self.rewards).sum()

    def batch(self, reference: Tensor | None = None) -> Experience:
        """Every response once, with its reward as the advantage of its tokens."""
        old = self.logprobs(self.table).detach()
        return Experience(
            token_ids=self.tokens,
            loss_mask=torch.ones(old.shape, dtype=torch.bool),
            sampling_logprobs=old,
            old_logprobs=old,
            advantages=self.rewards[:, None].expand(old.shape),
            temperature=TEMPERATURE,
            ref_logprobs=reference,
        )

    def gradient(self, of: Tensor) -> Tensor:
        return torch.autograd.grad(of, self.table)[0]


WAYS = [(0.7, 0), (1.0, 2), (0.9, 3)]


@pytest.mark.parametrize(("top_p", "top_k"), WAYS)
def test_the_average_gradient_is_that_of_the_expected_reward_of_the_truncated_policy(
    top_p: float, top_k: int
) -> None:
    policy = Truncated(top_p, top_k)
    batch = policy.batch()
    probabilities = batch.old_logprobs.sum(-1).exp()
    close(probabilities.sum(), torch.tensor(1.0), 1e-5)
    loss, _ = ClippedSurrogate()(policy.logprobs(policy.table), batch)
    ours = policy.gradient(-(probabilities[:, None] * loss).sum())
    close(ours, policy.gradient(policy.expected_reward), 1e-5)


def test_log_probabilities_of_the_whole_vocabulary_would_move_tokens_that_cannot_be_drawn() -> None:
    policy = Truncated(0.7, 0)
    batch = policy.batch()
    probabilities, cut_off = batch.old_logprobs.sum(-1).exp(), ~policy.kept.T
    whole = policy.logprobs(policy.table, among=False)
    ours = policy.gradient((probabilities[:, None] * whole * batch.advantages).sum())
    theirs = policy.gradient(policy.expected_reward)
    assert float(theirs[cut_off].abs().max()) == 0.0
    assert float(ours[cut_off].abs().max()) > 0.01
    assert float((ours - theirs).norm() / theirs.norm()) > 0.05


@pytest.mark.parametrize(("top_p", "top_k"), WAYS)
def test_a_kl_compares_the_two_distributions_over_the_support(top_p: float, top_k: int) -> None:
    """k3's average over the truncated policy's tokens is KL(pi_S || ref_S), summed over both tokens."""
    policy = Truncated(top_p, top_k)
    reference = policy.logprobs(policy.reference).detach()
    batch = policy.batch(reference)
    penalty, _ = KLInLoss(coefficient=1.0, estimator="k3").loss(policy.logprobs(policy.table), batch)
    ours = (batch.old_logprobs.sum(-1).exp()[:, None] * penalty).sum()
    pi, ref = policy.policy(policy.table), policy.policy(policy.reference)
    each = torch.where(policy.kept, pi * (pi / ref).log(), 0.0).sum(-1)
    close(ours, each[0] + (pi[0] * each[1:]).sum(), 1e-5)
