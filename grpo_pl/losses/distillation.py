"""Distillation in the loss: the divergence from a teacher over all tokens, not that of the sampled one."""

from functools import partial
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import forward_kl, generalized_jsd, reverse_kl, with_rest
from grpo_pl.losses.base import PRECISION
from grpo_pl.losses.kl import AdaptiveCoefficient, Divergence, KLPenalty
from grpo_pl.losses.kl import divergence as estimated_divergence
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Experience, TokenLoss, TokenScores

Kind = Literal["reverse", "forward", "jsd"]


@final
class TeacherKL(KLPenalty):
    """coefficient * D(policy, reference) of each token's whole distribution: on-policy distillation.

    The reference is the teacher. Responses are the policy's own, as in GKD (Agarwal et al. 2023,
    arXiv:2306.13649) with a student data fraction of 1; both distributions are at the sampling temperature.
    D is KL(policy || teacher), KL(teacher || policy) or the generalised Jensen-Shannon divergence, eq. 1.
    Unlike `KLInLoss` it has no variance from the sampled token. Prefixes are samples of the old policy and
    fixed: what a token does to the divergence of later ones has no gradient (`Distillation(discount=1)` has
    it).

    Over the whole vocabulary the teacher reads each micro-batch again in every update, and states are kept,
    not logits: at most `chunk_tokens` rows of both models' logits exist at once. With `top_k` the teacher
    reads a rollout once, and D is that of its k most probable tokens and, with `rest`, of all others as one
    event more: never more than the whole D (data processing inequality), and 0 where the policy agrees on
    these tokens. Without `rest`, terms are summed over the k alone, as in verl (`forward_kl_topk`): such a
    sum can be negative and has its minimum elsewhere, above all for `reverse`.

    `train/kl` is KL(policy || teacher), exact over the whole vocabulary, and with `top_k` estimated as ever;
    `train/teacher_divergence` is D.

    Args:
        coefficient: In units of reward per nat, 0 or more. Beside rewards, or alone.
        divergence: `reverse` (mode seeking), `forward` (mass covering), or `jsd` between the two.
        beta: Of `jsd`, in (0, 1): the weight of the teacher in the mixture; 1/2 is the symmetric one. Near 0
            it is beta times the forward KL, near 1 it is 1 - beta times the reverse.
        top_k: The teacher's most probable tokens that are compared; null for the whole vocabulary.
        rest: With `top_k`, whether all other tokens count as one more.
        controller: Moves the coefficient after each iteration; null for a fixed one.
    """

    description = "the divergence from the teacher"
    advice = f"a lower model.kl.coefficient, {PRECISION}"
    teaches = True

    def __init__(
        self,
        coefficient: float = 1.0,
        divergence: Kind = "reverse",
        beta: float = 0.5,
        top_k: int | None = None,
        rest: bool = True,
        controller: AdaptiveCoefficient | None = None,
    ) -> None:
        super().__init__(coefficient, controller)
        if divergence not in ("reverse", "forward", "jsd"):
            raise ArgumentError(f"divergence={divergence}: expected reverse, forward or jsd")
        if not 0 < beta < 1:
            raise ArgumentError(
                f"beta={beta}: expected a number in (0, 1); for the forward KL set divergence to forward, "
                "for the reverse one to reverse"
            )
        if top_k is not None and top_k < 1:
            raise ArgumentError(f"top_k={top_k}: expected 1 or more, or null for the whole vocabulary")
        kinds: dict[str, Divergence] = {"reverse": reverse_kl, "forward": forward_kl}
        self.apart = kinds.get(divergence, partial(generalized_jsd, beta=beta))
        self.top_k, self.rest = top_k, rest
        self.needs_ref_logprobs = top_k is not None
        self.divergence = self.apart if top_k is None else None

    @override
    def term(self, scores: TokenScores, batch: Experience) -> TokenLoss:
        if self.top_k is None:
            assert scores.divergence is not None, "forward computes it for a KL with a divergence"
            assert scores.reverse_kl is not None, "it comes with the divergence"
            apart, kl = scores.divergence, scores.reverse_kl
        else:
            apart, kl = self.among_top(scores, batch), estimated_divergence(scores.logprobs, batch)
        return TokenLoss(
            self.coefficient * apart, {"train/kl": kl, "train/teacher_divergence": apart.detach()}
        )

    def among_top(self, scores: TokenScores, batch: Experience) -> Float[Tensor, "B T"]:
        """The divergence of the teacher's most probable tokens; 0 outside of the loss mask."""
        assert scores.candidates is not None, "the reference has named them"
        assert batch.teacher_logprobs is not None, "and scored them"
        student, teacher = scores.candidates[batch.loss_mask], batch.teacher_logprobs[batch.loss_mask]
        if self.rest:
            student, teacher = with_rest(student), with_rest(teacher)
        apart = self.apart(student, teacher)
        return torch.zeros_like(scores.logprobs).masked_scatter(batch.loss_mask, apart)
