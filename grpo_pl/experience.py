"""Rollout -> rewards -> scores -> advantages -> Experience."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.advantages.base import AdvantageEstimator
from grpo_pl.functional import EpisodeTokens, prompt_weights
from grpo_pl.losses.base import LossTerm
from grpo_pl.losses.correction import Correction, MismatchCorrection, all_kept
from grpo_pl.losses.kl import KLPenalty
from grpo_pl.losses.masks import TokenMask
from grpo_pl.minibatches import Step, first_pass
from grpo_pl.rewards.feedback import RewardStage, reward_metrics
from grpo_pl.training.metrics import explained_variance, rollout_metrics, sample_records, teacher_metrics
from grpo_pl.training.silent_sample import SilentSample
from grpo_pl.types import Experience, Feedback, Rollout, ScoredSamples, Sequences, TokenScores

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
    correction: MismatchCorrection | None
    terms: Sequence[LossTerm]
    trained: Scorer
    """Policy and critic."""
    reference: Scorer | None
    """None where nothing reads its scores before the update."""
    reads_silent: bool
    """Whether sequences without an advantage are scored, because a term or a mask depends on them."""
    silent: SilentSample
    """Which of the other sequences without an advantage are read all the same, for the metrics."""
    scores_first: bool
    """Whether the trained models' scores are needed before the first optimizer step. If not, sequences read
    only in that step are not scored before: its own forward gives their old log-probabilities."""

    @torch.no_grad()
    def __call__(self, rollout: Rollout, steps: Sequence[Step], version: int) -> Experience:
        """The experience of a rollout for the given optimizer steps; `version` counts the policy's so far."""
        device, sum_over_ranks = self.rewards.device, self.rewards.sum_over_ranks
        tokens = EpisodeTokens(rollout.loss_mask.to(device), rollout.episodes)
        scored = self.rewards.score(rollout)
        feedback = self.rewards.feedback(rollout, scored)
        # With the policy loss alone, scores change no advantage: what has none need not be scored.
        early = None if self.reads_silent else self.advantage.credit(feedback)
        rows = sequences_of(rollout, device)
        sequences = tokens.together(rows)
        sequences.active = None if early is None else (early.advantages != 0).any(-1)
        learned = sequences.read
        sequences.active, stands_for = self.silent(sequences, version)
        rows.active = tokens.apart(sequences.active)
        sampling_logprobs = tokens.together(rollout.sampling_logprobs.to(device))
        first = first_pass(steps)
        scored_now, scored_later = self._now_and_later(first, steps)
        scores = tokens.together(self._scores(self.trained, rows, scored_now))
        reference = None
        if self.reference is not None:
            reference = tokens.together(self._scores(self.reference, rows, first))
        feedback = self._with_scores(feedback, scores, None if reference is None else reference.logprobs)
        credit = self.advantage.credit(feedback) if early is None else early
        correction = self._correction(scores, sampling_logprobs, learned)
        top = rollout.top_logprobs
        experience = Experience(
            **vars(sequences) | named_by(reference, sequences),
            sampling_logprobs=sampling_logprobs,
            old_logprobs=sampling_logprobs if self.bypasses else scores.logprobs,
            old_values=scores.values,
            ref_logprobs=feedback.ref_logprobs,
            advantages=credit.advantages,
            returns=credit.returns,
            weights=correction.weights,
            candidate_logprobs=None if top is None else tokens.together(top.to(device)),
            kept=self._kept(feedback, scores, correction),
            has_old_logprobs=tokens.together(without(scored_later, rows)),
            stands_for=stands_for,
        )
        for term in self.terms:
            experience.prepared |= term.prepare(experience, feedback, version)
        told = self._reports(rollout, scored, feedback, experience, version, correction.metrics)
        weigh = partial(prompt_weights, group_ids=feedback.group_ids, sum_over_ranks=sum_over_ranks)
        experience = replace(
            experience,
            prompt_weights=weigh(experience.counted.sum(-1)),
            all_prompt_weights=None if experience.kept is None else weigh(experience.loss_mask.sum(-1)),
            **told,
        )
        return in_rows(experience, rows, tokens)

    def _reports(
        self,
        rollout: Rollout,
        scored: ScoredSamples,
        feedback: Feedback,
        experience: Experience,
        version: int,
        others: dict[str, float],
    ) -> dict[str, Any]:
        """The metrics of an iteration, with others, and the records of its samples."""
        sum_over_ranks = self.rewards.sum_over_ranks
        judged = bool(feedback.weights) or not self.advantage.needs_rewards
        has_signal = self.advantage.has_signal(feedback) if judged else None
        metrics = (
            rollout_metrics(rollout, experience, version, sum_over_ranks, has_signal)
            | reward_metrics(scored, sum_over_ranks)
            | self._metrics(feedback)
            | others
        )
        return {"metrics": metrics, "records": sample_records(rollout, scored, experience)}

    def _metrics(self, feedback: Feedback) -> dict[str, float]:
        """What critic, KL and teacher say about the responses."""
        coefficient = {} if self.kl is None else {"train/kl_coefficient": float(self.kl.coefficient)}
        taught = teacher_metrics(feedback) if self.advantage.needs_reference else {}
        return explained_variance(feedback, self.advantage.gamma) | coefficient | taught

    @property
    def bypasses(self) -> bool:
        """Whether the engine's log-probabilities are the old ones."""
        return self.correction is not None and self.correction.bypasses

    def _now_and_later(self, first: list[Step], steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
        """The steps of the first pass scored before the update, and those that their own forward scores."""
        if self.scores_first:
            return first, []
        if self.bypasses:
            return [], []
        return (first, []) if len(first) < len(steps) else (first[1:], first[:1])

    def _scores(self, model: Scorer, sequences: Sequences, steps: Sequence[Step]) -> TokenScores:
        """The scores of the active sequences among the given rows; zero elsewhere."""
        read = [sequences.among(rows) for step in steps for rows in step]
        parts = [model(sequences.select(rows)) for rows in read]
        like = torch.zeros(sequences.loss_mask.shape, device=self.rewards.device)
        return TokenScores.assemble(parts, read, like=like)

    def _with_scores(
        self, feedback: Feedback, scores: TokenScores, reference: Float[Tensor, "N T"] | None
    ) -> Feedback:
        """The feedback with the models' scores and the cost of a KL in the reward."""
        cost = None if self.kl is None or reference is None else self.kl.cost(scores.logprobs, reference)
        kl_cost = None if cost is None else feedback.loss_mask * cost
        old = scores.logprobs
        return replace(
            feedback, values=scores.values, old_logprobs=old, ref_logprobs=reference, kl_cost=kl_cost
        )

    def _correction(
        self, scores: TokenScores, sampling_logprobs: Float[Tensor, "N T"], learned: Bool[Tensor, "N T"]
    ) -> Correction:
        """The weights of tokens for the mismatch between engine and trainer; no metrics of no token."""
        if self.correction is None:
            return Correction(None, {})
        sum_over_ranks = self.rewards.sum_over_ranks
        correction = self.correction(scores.logprobs, sampling_logprobs, learned, sum_over_ranks)
        assert isinstance(correction, Correction), "model.correction gives no Correction"
        assert correction.kept is None or self.correction.rejects, (
            "model.correction takes tokens out without saying so: it needs `rejects = True`, or responses "
            "that were not read count in the denominators"
        )
        return correction if sum_over_ranks(learned.sum()) > 0 else correction._replace(metrics={})

    def _kept(
        self, feedback: Feedback, scores: TokenScores, correction: Correction
    ) -> Bool[Tensor, "N T"] | None:
        """The tokens that all masks and the correction keep; None where nothing takes any out."""
        entropy = torch.zeros_like(feedback.rewards) if scores.entropy is None else scores.entropy
        return all_kept([*(mask(feedback, entropy) for mask in self.masks), correction.kept])


def sequences_of(rollout: Rollout, device: torch.device) -> Sequences:
    """The rows of a rollout as the models read them.

    Their candidates are the tokens that each token was drawn from, or the likeliest ones of the sampler.
    """
    candidates = rollout.top_tokens if rollout.candidates is None else rollout.candidates
    return Sequences(
        token_ids=rollout.token_ids.to(device),
        loss_mask=rollout.loss_mask.to(device),
        temperature=rollout.temperature,
        candidates=None if candidates is None else candidates.to(device),
        renormalized=rollout.candidates is not None,
    )


def in_rows(experience: Experience, rows: Sequences, tokens: EpisodeTokens) -> Experience:
    """The experience of episodes as that of their rows, which the models read."""
    if tokens.owners is None:
        return experience
    return replace(
        tokens.apart(experience), token_ids=rows.token_ids, loss_mask=rows.loss_mask, episodes=tokens.owners
    )


def without(steps: Sequence[Step], sequences: Sequences) -> Bool[Tensor, "N"] | None:
    """False on the rows of the steps; None if there are no steps."""
    if not steps:
        return None
    others = torch.ones_like(sequences.loss_mask[:, 0])
    others[[row for step in steps for rows in step for row in rows]] = False
    return others


def named_by(reference: TokenScores | None, sequences: Sequences) -> dict[str, Tensor | None]:
    """The most probable tokens that the reference has named, as candidates, with its scores of them."""
    if reference is None or reference.candidate_ids is None:
        return {}
    assert sequences.candidates is None, "check_whole_distributions refuses others beside them"
    return {"candidates": reference.candidate_ids, "teacher_logprobs": reference.candidates}
