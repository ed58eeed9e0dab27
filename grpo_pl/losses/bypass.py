"""Bypass mode, and several corrections at once."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.losses.correction import Correction, ImportanceCorrection, MismatchCorrection, all_kept
from grpo_pl.losses.rejection import rejection
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import only_here


@final
class Bypass(MismatchCorrection):
    """Lets the engine's log-probabilities stand for the old policy's: pi / pi_engine is the only ratio.

    old_logprobs := sampling_logprobs, so that the ratio of every surrogate is that of the policy as it learns
    to the policy that sampled, and its clip bounds mismatch and movement at once. verl (`bypass_mode` with
    `ppo_clip`), prime-rl and TRL's asynchronous GRPO. No forward before the update is needed, unless
    something else asks for one: a critic, a KL in the reward, a mask by entropy. `CISPO` in this mode is
    REINFORCE with truncated weights of tokens (verl's `reinforce`).

    Bias: with an unclipped surrogate the gradient is that of samples weighed token by token, as with
    `ImportanceCorrection(level="token")` without bounds; the clip drops tokens on which the engines disagree,
    also in the first minibatch of a rollout, where otherwise it never acts.

    `sync/logprob_mismatch` then compares the engine with the policy as it learns, and so contains the
    movement of later minibatches; `train/effective_sample_size` is that of the ratio to the engine.
    """

    needs_old_logprobs = False
    bypasses = True

    @override
    def __call__(
        self,
        old_logprobs: Float[Tensor, "N T"],
        sampling_logprobs: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor] = only_here,
    ) -> Correction:
        return Correction(None, {})


@final
class CombinedCorrection(MismatchCorrection):
    """Several corrections at once: a token stays if all of them keep it.

    NeMo-RL's `seq-mask-tis` is `ImportanceCorrection` of tokens with `RatioRejection` of geometric means;
    verl's `rollout_is` with a list of `rollout_rs` is written so too. Each one sees all tokens, those that
    another takes out too, as in verl. `Bypass` with a rejection compares with the old policy, which is then
    scored; verl's compares with the policy as it learns, in each minibatch anew.

    Args:
        corrections: The corrections; at most one of them gives weights.
    """

    def __init__(self, corrections: list[MismatchCorrection]) -> None:
        kinds = [type(one) for one in corrections]
        if len(kinds) < 2 or CombinedCorrection in kinds:
            raise ArgumentError("corrections: expected two or more, none of them combined itself")
        if kinds.count(ImportanceCorrection) > 1:
            raise ArgumentError("corrections: expected at most one ImportanceCorrection; take the others out")
        if ImportanceCorrection in kinds and Bypass in kinds:
            raise ArgumentError(
                "corrections: Bypass and ImportanceCorrection weigh for the mismatch twice: take one out"
            )
        self.corrections = corrections
        self.needs_old_logprobs = any(one.needs_old_logprobs for one in corrections)
        self.rejects = any(one.rejects for one in corrections)
        self.bypasses = any(one.bypasses for one in corrections)

    @override
    def __call__(
        self,
        old_logprobs: Float[Tensor, "N T"],
        sampling_logprobs: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        sum_over_ranks: Callable[[Tensor], Tensor] = only_here,
    ) -> Correction:
        parts = [one(old_logprobs, sampling_logprobs, mask, sum_over_ranks) for one in self.corrections]
        metrics = {name: value for part in parts for name, value in part.metrics.items()}
        kept = all_kept([part.kept for part in parts])
        if kept is not None:
            metrics |= rejection(kept, mask, sum_over_ranks).metrics
        weights = [part.weights for part in parts if part.weights is not None]
        product = torch.stack(weights).prod(0) if weights else None
        return Correction(product, metrics, kept)
