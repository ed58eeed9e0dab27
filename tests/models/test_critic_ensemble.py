"""Several critics: their mean is the value, and each learns from its own responses."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from grpo_pl.models import CausalLM, CriticEnsemble, ModelBuilder, TrunkValueHead, ValueHead
from grpo_pl.models.critic_ensemble import ValueEnsemble, share_of


def batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, 300, (rows, 10), generator=torch.Generator().manual_seed(0))
    return tokens, torch.arange(10).expand(rows, 10) >= 4


@pytest.fixture
def ensemble(tiny_model: Path) -> ValueEnsemble:
    """Two critics that differ in their heads."""
    built = CriticEnsemble([ValueHead(), ValueHead()], pretrained=str(tiny_model)).build()
    for n, critic in enumerate(built.critics):
        nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(n))
    return built


def test_the_value_is_the_mean(ensemble: ValueEnsemble) -> None:
    with torch.no_grad():
        one, other = (critic(*batch()) for critic in ensemble.critics)
        assert torch.allclose(ensemble(*batch()), (one + other) / 2)
    assert not torch.allclose(one, other, atol=0.1)


def test_each_response_is_learned_from_by_one_critic_alone(ensemble: ValueEnsemble) -> None:
    tokens, mask = batch()
    shares = share_of(tokens, mask, 2).tolist()
    assert {*shares} == {0, 1}
    values = ensemble(tokens, mask)
    for row, share in enumerate(shares):
        own = ensemble.critics[share](tokens[[row]], mask[[row]])
        assert torch.allclose(values[row], own[0], atol=1e-5)
        ensemble.zero_grad()
        values[row].sum().backward(retain_graph=True)
        sizes = [sum(float(p.grad.abs().sum()) for p in c.parameters()) for c in ensemble.critics]  # type: ignore[union-attr]
        assert sizes[share] > 0
        assert sizes[1 - share] == 0


def test_a_critic_without_a_response_in_a_micro_batch_has_a_gradient_of_zero(ensemble: ValueEnsemble) -> None:
    """And not none: where parameters are sharded or gradients averaged, every rank must run it."""
    tokens, mask = batch(1)
    ensemble(tokens, mask).sum().backward()
    gradients = [p.grad for p in ensemble.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_share_of_a_response_depends_on_its_own_tokens_alone() -> None:
    tokens, mask = batch(200)
    shares = share_of(tokens, mask, 3)
    assert shares.bincount().tolist() == pytest.approx([200 / 3] * 3, abs=20)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(share_of(tokens[order], mask[order], 3), shares[order])
    wider = torch.cat([tokens, torch.full((200, 4), 299)], -1), torch.cat([mask, torch.zeros(200, 4) > 0], -1)
    assert torch.equal(share_of(*wider, 3), shares)
    other_prompts = torch.where(mask, tokens, 7)
    assert torch.equal(share_of(other_prompts, mask, 3), shares)


def test_critics_on_the_policys_trunk_read_the_states_of_their_own_responses(tiny_model: Path) -> None:
    policy = CausalLM(str(tiny_model)).build()
    critics: list[ModelBuilder] = [TrunkValueHead(), TrunkValueHead()]
    built = CriticEnsemble(critics).build(policy)
    for critic in built.critics:
        nn.init.constant_(critic.head.weight, 0.3)
    hidden = policy(*batch(), 1.0).hidden
    with torch.no_grad():
        mean = built(*batch(), hidden)
    assert torch.allclose(built(*batch(), hidden), mean, atol=1e-6), "alike critics, alike values"


def test_one_critic_is_no_ensemble() -> None:
    with pytest.raises(ValueError, match=r"^critics: expected two or more, got 1"):
        CriticEnsemble([ValueHead()])
