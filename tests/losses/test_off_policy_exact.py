"""What the ratio of tokens and that of responses estimate off policy, by enumeration of all responses."""

import math

import torch
from helpers.exact import F64, close
from helpers.experiences import experience
from torch import Tensor

from grpo_pl.losses import ClippedSurrogate, ConstantLength

VOCABULARY, LENGTH = 3, 3
RESPONSES = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * LENGTH)
REWARDS = torch.randn(len(RESPONSES), dtype=F64, generator=torch.Generator().manual_seed(9))


def table(seed: int) -> Tensor:
    """Logits of each token after each prefix: rows are the prefixes of 0, 1 and 2 tokens."""
    prefixes = sum(VOCABULARY**t for t in range(LENGTH))
    return torch.randn(prefixes, VOCABULARY, dtype=F64, generator=torch.Generator().manual_seed(seed))


def logprobs_of(logits: Tensor) -> Tensor:
    """Of each token of every response."""
    logp, start, columns = logits.log_softmax(-1), 0, []
    for t in range(LENGTH):
        row = torch.zeros(len(RESPONSES), dtype=torch.long)
        for token in RESPONSES[:, :t].T:
            row = VOCABULARY * row + token
        columns.append(logp[start + row, RESPONSES[:, t]])
        start += VOCABULARY**t
    return torch.stack(columns, -1)


OLD = logprobs_of(table(1))
LOGITS = (table(1) + 0.5 * table(2)).requires_grad_()


def expected_gradient(level: str, old: Tensor) -> Tensor:
    """That of the loss over samples of the old policy, summed over tokens; never clipped."""
    loss = ClippedSurrogate(clip_low=1.0, clip_high=math.inf, level=level)
    mask = torch.ones(RESPONSES.shape, dtype=torch.bool)
    advantages = REWARDS[:, None].expand(RESPONSES.shape)
    batch = experience(mask, old_logprobs=old, advantages=advantages)
    tokens = loss(logprobs_of(LOGITS), batch).loss
    probability = old.sum(-1, keepdim=True).exp()
    expected = ConstantLength(1)(len(RESPONSES) * probability * tokens, batch)
    return torch.autograd.grad(expected, LOGITS)[0]


def exact() -> Tensor:
    return torch.autograd.grad(-(logprobs_of(LOGITS).sum(-1).exp() * REWARDS).sum(), LOGITS)[0]


def test_off_policy_the_ratio_of_responses_gives_the_gradient_of_the_expected_reward() -> None:
    close(expected_gradient("sequence", OLD), exact())


def test_off_policy_the_ratio_of_tokens_leaves_out_that_the_old_policy_chose_the_prefixes() -> None:
    assert (expected_gradient("token", OLD) - exact()).abs().max() > 0.05


def test_on_policy_both_give_it() -> None:
    for level in ("token", "sequence"):
        close(expected_gradient(level, logprobs_of(LOGITS).detach()), exact())
