"""Rollout -> rewards -> scores -> advantages -> Experience."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.advantages.base import AdvantageEstimator
from grpo_pl.functional import prompt_weights
from grpo_pl.losses.correction import Correction, ImportanceCorrection
from grpo_pl.losses.kl import KLPenalty
from grpo_pl.losses.masks import TokenMask
from grpo_pl.minibatches import Step, first_pass
from grpo_pl.rewards.feedback import RewardStage, reward_metrics
from grpo_pl.training.metrics import rollout_metrics, sample_records
from grpo_pl.types import Experience, Feedback, Rollout, Sequences, TokenScores

Scorer = Callable[[Sequences], TokenScores]
"""Scores a micro-batch in the precision of training."""


@dataclass(frozen=True)
class ExperienceStage:
    """Makes experience of a rollout.

    A rollout is scored in the micro-batches of the first update epoch, through the strategy's wrapper and in
    `training_step`'s precision: so the first ratio is exactly 1, whatever the precision.
    """

    rewards: RewardStage
    advantage: AdvantageEstimator
    kl: KLPenalty | None
    masks: Sequence[TokenMask]
    correction: ImportanceCorrection | None
    trained: Scorer
    """Policy and critic."""
    reference: Scorer
    reads_silent: bool
    """Whether sequences without an advantage are scored, because a term or a mask depends on them."""
    scores_first: bool
    """Whether the trained models' scores are needed before the first optimizer step. If not, sequences read
    only in that step are not scored before: its own forward gives their old log-probabilities."""

    @torch.no_grad()
    def __call__(self, rollout: Rollout, steps: Sequence[Step], version: int) -> Experience:
        """The experience of a rollout for the given optimizer steps; `version` counts the policy's so far."""
        device, sum_over_ranks = self.rewards.device, self.rewards.sum_over_ranks
        scored = self.rewards.score(rollout)
        feedback = self.rewards.feedback(rollout, scored)
        # With the policy loss alone, scores change no advantage: what has none need not be scored.
        early = None if self.reads_silent else self.advantage.credit(feedback)
        sequences = Sequences(
            token_ids=rollout.token_ids.to(device),
            loss_mask=feedback.loss_mask,
            temperature=rollout.temperature,
            active=None if early is None else (early.advantages != 0).any(-1),
        )
        sampling_logprobs = rollout.sampling_logprobs.to(device)
        first = first_pass(steps)
        scored_later = [] if self.scores_first or len(first) < len(steps) else first[:1]
        scores = self._scores(self.trained, sequences, first[len(scored_later) :])
        reference = None if self.kl is None else self._scores(self.reference, sequences, first).logprobs
        feedback = self._with_scores(feedback, scores, reference)
        credit = self.advantage.credit(feedback) if early is None else early
        correction = self._correction(scores, sampling_logprobs, sequences)
        experience = Experience(
            **vars(sequences),
            sampling_logprobs=sampling_logprobs,
            old_logprobs=scores.logprobs,
            old_values=scores.values,
            ref_logprobs=reference,
            advantages=credit.advantages,
            returns=credit.returns,
            weights=correction.weights,
            kept=self._kept(feedback, scores),
            has_old_logprobs=without(scored_later, sequences),
        )
        weigh = partial(prompt_weights, group_ids=feedback.group_ids, sum_over_ranks=sum_over_ranks)
        coefficient = {} if self.kl is None else {"train/kl_coefficient": float(self.kl.coefficient)}
        return replace(
            experience,
            prompt_weights=weigh(experience.counted.sum(-1)),
            all_prompt_weights=weigh(experience.loss_mask.sum(-1)) if self.masks else None,
            metrics=rollout_metrics(
                rollout, experience, version, sum_over_ranks, self.advantage.has_signal(feedback)
            )
            | reward_metrics(scored, sum_over_ranks)
            | coefficient
            | correction.metrics,
            records=sample_records(rollout, scored, experience),
        )

    def _scores(self, model: Scorer, sequences: Sequences, steps: Sequence[Step]) -> TokenScores:
        """The scores of the active sequences among the given rows; zero elsewhere."""
        read = [sequences.among(rows) for step in steps for rows in step]
        parts = [model(sequences.select(rows)) for rows in read]
        like = torch.zeros(sequences.loss_mask.shape, device=self.rewards.device)
        return TokenScores.assemble(parts, read, like=like)

    def _with_scores(
        self, feedback: Feedback, scores: TokenScores, reference: Float[Tensor, "N T"] | None
    ) -> Feedback:
        """The feedback with the critic's values and the cost of a KL in the reward."""
        cost = None if self.kl is None or reference is None else self.kl.cost(scores.logprobs, reference)
        kl_cost = None if cost is None else feedback.loss_mask * cost
        return replace(feedback, values=scores.values, kl_cost=kl_cost)

    def _correction(
        self, scores: TokenScores, sampling_logprobs: Float[Tensor, "N T"], sequences: Sequences
    ) -> Correction:
        """The weights of tokens for the mismatch between engine and trainer."""
        if self.correction is None:
            return Correction(None, {})
        return self.correction(
            scores.logprobs, sampling_logprobs, sequences.read, self.rewards.sum_over_ranks
        )

    def _kept(self, feedback: Feedback, scores: TokenScores) -> Bool[Tensor, "N T"] | None:
        """The tokens that all masks keep; None without masks."""
        entropy = torch.zeros_like(feedback.rewards) if scores.entropy is None else scores.entropy
        kept = [mask(feedback, entropy) for mask in self.masks]
        return torch.stack(kept).all(0) if kept else None


def without(steps: Sequence[Step], sequences: Sequences) -> Bool[Tensor, "N"] | None:
    """False on the rows of the steps; None if there are no steps."""
    if not steps:
        return None
    others = torch.ones_like(sequences.loss_mask[:, 0])
    others[[row for step in steps for rows in step for row in rows]] = False
    return others
