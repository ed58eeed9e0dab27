"""TeacherKL: values by hand, gradients against whole distributions, and what it expects of prefixes."""

import math
from typing import Any

import pytest
import torch
from helpers.exact import F64, close, f64
from helpers.experiences import experience
from torch import Tensor

from grpo_pl.functional import forward_kl, generalized_jsd, reverse_kl
from grpo_pl.losses import TeacherKL
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenScores

MASK = torch.tensor([[False, True, True, False], [False, False, True, True]])
VOCABULARY = 6
WHOLE = {
    "reverse": reverse_kl,
    "forward": forward_kl,
    "jsd": lambda p, q: generalized_jsd(p, q, 0.5),
}


def distributions(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*MASK.shape, VOCABULARY, dtype=F64, generator=generator).log_softmax(-1)


def among_top(student: Tensor, teacher: Tensor, k: int) -> tuple[TokenScores, Experience]:
    """Scores and experience as the module makes them from whole distributions."""
    top = teacher.topk(k, -1)
    zeros = torch.zeros(MASK.shape, dtype=F64)
    chosen = student.gather(-1, top.indices)
    scores = TokenScores(logprobs=zeros, candidates=torch.where(MASK[..., None], chosen, 0.0))
    batch = experience(
        MASK, ref_logprobs=zeros, teacher_logprobs=torch.where(MASK[..., None], top.values, 0.0)
    )
    return scores, batch


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("k", [VOCABULARY - 1, VOCABULARY])
def test_with_all_tokens_named_top_k_is_the_whole_divergence_and_so_is_its_gradient(
    kind: str, k: int
) -> None:
    student, teacher = distributions(0).requires_grad_(), distributions(1)
    term = TeacherKL(divergence=kind, top_k=k)
    loss, metrics = term.term(*among_top(student, teacher, k))
    whole = torch.where(MASK, WHOLE[kind](student, teacher), 0.0)
    close(loss, whole, tolerance=1e-5 if k == VOCABULARY else 1e-9)  # the rest counts as 1e-7 then
    close(metrics["train/teacher_divergence"], loss.detach())

    def of_logits(value: Tensor) -> Tensor:
        """The gradient of logits that gave the log-probabilities."""
        (g,) = torch.autograd.grad(value.sum(), student)
        return g - student.detach().exp() * g.sum(-1, keepdim=True)

    close(of_logits(loss), of_logits(whole), tolerance=1e-5 if k == VOCABULARY else 1e-9)


def test_the_rest_counts_as_one_event_more() -> None:
    p, q = f64([0.5, 0.3, 0.2]), f64([0.7, 0.2, 0.1])
    scores, batch = among_top(p.log().expand(*MASK.shape, 3), q.log().expand(*MASK.shape, 3), 1)
    loss, _ = TeacherKL(coefficient=2.0, top_k=1).term(scores, batch)
    expected = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3)
    close(loss, 2 * expected * MASK.double())


def test_without_the_rest_terms_are_summed_over_the_named_tokens_alone() -> None:
    p, q = f64([0.5, 0.3, 0.2]), f64([0.7, 0.2, 0.1])
    given = among_top(p.log().expand(*MASK.shape, 3), q.log().expand(*MASK.shape, 3), 2)
    loss, _ = TeacherKL(divergence="forward", top_k=2, rest=False).term(*given)
    close(loss, (0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3)) * MASK.double())
    loss, _ = TeacherKL(divergence="reverse", top_k=1, rest=False).term(*given)
    assert loss.min() < 0


def test_over_the_whole_vocabulary_the_scores_of_the_policy_hold_it_and_the_kl() -> None:
    apart, kl = (torch.rand(MASK.shape, dtype=F64) for _ in range(2))
    scores = TokenScores(logprobs=torch.zeros_like(kl), divergence=apart, reverse_kl=kl)
    penalty = TeacherKL(coefficient=3.0, divergence="jsd")
    loss, metrics = penalty.term(scores, experience(MASK))
    close(loss, 3 * apart)
    close(metrics["train/kl"], kl)
    assert not penalty.needs_ref_logprobs


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"beta": 1.0}, "beta=1.0: expected a number in (0, 1); for the forward KL"),
        ({"top_k": 0}, "top_k=0: expected 1 or more, or null"),
        ({"coefficient": -1.0}, "coefficient=-1.0: expected 0 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        TeacherKL(**arguments)
    assert sentence in str(refused.value)
