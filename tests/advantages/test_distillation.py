"""A teacher's log-ratios as advantages: values by hand, and whose gradient they are, by enumeration.

The policy has a table of logits: one row for the empty prefix, and one for each first token. Expectations are
sums over all responses of two tokens, weighted with probabilities that carry no gradient, as samples do.
"""

import pytest
import torch
from helpers.exact import F64, close, f64
from helpers.feedbacks import feedback, outcomes
from torch import Tensor

from grpo_pl.advantages import GAE, Distillation, GroupRelative, LeaveOneOut
from grpo_pl.advantages.process import ProcessGroupRelative
from grpo_pl.losses.surrogates import Reinforce
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, Feedback

MASK = torch.tensor([[False, True, False, True, True], [False, False, True, True, False]])
OLD = f64([[9, -1, 9, -2, -3], [9, 9, -1, -1, 9]])
TEACHER = f64([[7, -2, 7, -1, -7], [7, 7, -1, -4, 7]])


def taught(**others: object) -> Feedback:
    return feedback(torch.zeros_like(OLD), MASK, old_logprobs=OLD, ref_logprobs=TEACHER, **others)


def test_a_token_is_worth_the_teachers_log_probability_less_the_policys() -> None:
    advantages, returns = Distillation(coefficient=2.0)(taught())
    close(advantages, [[0, -2, 0, 2, -8], [0, 0, 0, -6, 0]])
    assert returns is None


def test_with_a_discount_a_token_is_worth_what_comes_after_it_too() -> None:
    close(Distillation(discount=0.5)(taught()).advantages, [[0, -1.5, 0, -1, -4], [0, 0, -1.5, -3, 0]])
    close(Distillation(discount=1.0)(taught()).advantages, [[0, -4, 0, -3, -4], [0, 0, -3, -3, 0]])


def test_a_log_ratio_is_moved_to_the_bound() -> None:
    close(Distillation(bound=2.0)(taught()).advantages, [[0, -1, 0, 1, -2], [0, 0, 0, -2, 0]])


def test_it_is_added_to_the_advantages_of_its_base() -> None:
    group = outcomes([1.0, 0.0, 0.0], [4, 4, 4], [1, 2, 2])
    ratio = torch.where(group.loss_mask, 0.25, 0.0).double()
    group.old_logprobs, group.ref_logprobs = torch.zeros_like(ratio), ratio
    ours = Distillation(base=LeaveOneOut(), coefficient=2.0)(group).advantages
    close(ours, LeaveOneOut()(group).advantages + torch.where(group.loss_mask, 0.5, 0.0))


def test_a_teacher_needs_no_reward_so_an_unscored_response_is_learned_from() -> None:
    unscored = taught(scored=torch.tensor([False, True]))
    close(Distillation()(unscored).advantages, Distillation()(taught()).advantages)
    assert Distillation().has_signal(unscored).all()


def test_a_critic_beside_a_teacher_foresees_returns_with_the_discount_of_its_estimator() -> None:
    """`train/explained_variance` goes by it."""
    assert Distillation(GAE(gamma=0.9)).gamma == 0.9
    assert Distillation(LeaveOneOut()).gamma == Distillation().gamma == 1.0


def test_it_needs_what_its_base_needs() -> None:
    alone, group, steps, critic = (
        Distillation(base) for base in (None, GroupRelative(), ProcessGroupRelative(), GAE())
    )
    assert [one.min_group_size for one in (alone, group, steps, critic)] == [1, 2, 2, 1]
    assert [one.needs_rewards for one in (alone, group, steps, critic)] == [False, True, True, True]
    assert [one.needs_steps for one in (alone, group, steps, critic)] == [False, False, True, False]
    assert [one.needs_critic for one in (alone, group, steps, critic)] == [False, False, False, True]


def test_it_foresees_the_returns_of_its_base() -> None:
    assert Distillation(GAE(gamma=0.5)).gamma == 0.5
    assert Distillation().gamma == 1.0


def test_beside_a_teacher_alone_a_kl_in_the_reward_is_paid_from_each_token_on() -> None:
    cost = torch.where(MASK, f64([[0, 1, 0, 2, 4], [0, 0, 8, 16, 0]]), 0.0)
    alone, paying = (Distillation().credit(taught(kl_cost=of)).advantages for of in (None, cost))
    close(alone - paying, [[0, 7, 0, 6, 4], [0, 0, 24, 16, 0]])


@pytest.mark.parametrize(
    "arguments", [{"coefficient": 0.0}, {"discount": 1.5}, {"bound": 0.0}, {"coefficient": float("inf")}]
)
def test_bad_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=f"^{next(iter(arguments))}="):
        Distillation(**arguments)


# ------------------------------------------------------------------------------------------- by enumeration

VOCABULARY = 4


def table(seed: int) -> Tensor:
    """Log-probabilities [1 + V, V] of tokens after each prefix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1 + VOCABULARY, VOCABULARY, dtype=F64, generator=generator).log_softmax(-1)


REFERENCE, LOGITS = table(1), table(3).requires_grad_()


def gradient(of: Tensor) -> Tensor:
    return torch.autograd.grad(of, LOGITS)[0]


def responses() -> tuple[Tensor, Tensor]:
    """Policy log-probabilities [V * V, 2] of all responses of two tokens, and the teacher's."""
    first, second = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY)).T
    logp = LOGITS.log_softmax(-1)
    return tuple(torch.stack([p[0, first], p[1 + first, second]], -1) for p in (logp, REFERENCE))


def expected_gradient(estimator: Distillation) -> Tensor:
    """Of the policy loss, over samples of the policy."""
    logp, teacher = responses()
    old, mask = logp.detach(), torch.ones(logp.shape, dtype=torch.bool)
    seen = feedback(torch.zeros_like(old), mask, old_logprobs=old, ref_logprobs=teacher)
    batch = Experience(
        token_ids=mask.long(), loss_mask=mask, sampling_logprobs=old, old_logprobs=old, temperature=1.0,
        advantages=estimator(seen).advantages,
    )  # fmt: skip
    loss, _ = Reinforce()(logp, batch)
    return gradient((old.sum(-1).exp() * loss.sum(-1)).sum())


def test_each_tokens_own_ratio_has_the_gradient_of_the_reverse_kl_at_its_prefix() -> None:
    """What is dropped: that the first token decides which divergence the second one has."""
    logp = LOGITS.log_softmax(-1)
    of_prefix = (logp.exp() * (logp - REFERENCE)).sum(-1)
    prefixes_given = of_prefix[0] + (logp[0].detach().exp() * of_prefix[1:]).sum()
    close(expected_gradient(Distillation()), gradient(prefixes_given))


def test_with_all_later_ratios_it_is_the_gradient_of_the_kl_of_whole_responses() -> None:
    logp, teacher = responses()
    whole = (logp.sum(-1).exp() * (logp - teacher).sum(-1)).sum()
    close(expected_gradient(Distillation(discount=1.0)), gradient(whole))
    assert (
        expected_gradient(Distillation()) - expected_gradient(Distillation(discount=1.0))
    ).abs().max() > 0.1
