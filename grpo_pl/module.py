"""PolicyOptimization: holds the components and states the objective."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.advantages import AdvantageEstimator
from grpo_pl.experience import ExperienceStage, Scorer
from grpo_pl.losses import Aggregation, ClippedValueLoss, EntropyBonus, KLPenalty, LossTerm, PolicyLoss
from grpo_pl.losses.correction import MismatchCorrection
from grpo_pl.losses.masks import TokenMask
from grpo_pl.losses.objective import Objective, all_terms
from grpo_pl.losses.score_centering import check_centering, check_top_logprobs_read
from grpo_pl.minibatches import Step
from grpo_pl.models import LanguageModel, ModelBuilder
from grpo_pl.models.reference_update import ReferenceUpdate
from grpo_pl.rewards.base import RewardFunction, Verifier
from grpo_pl.rewards.feedback import RewardStage
from grpo_pl.rewards.transforms import RewardTransform
from grpo_pl.rollout.dynamic_sampling import DynamicSampling
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.system.refusal import check_at_least
from grpo_pl.training.checks.components import (
    check_advantage_sources,
    check_components,
    check_critic,
    check_environment,
    check_losses,
    check_names,
    check_optimizer,
    check_reference_update,
    check_resampling,
    check_whole_distributions,
)
from grpo_pl.training.checks.prompts import check_answers
from grpo_pl.training.metrics import ReadTokens
from grpo_pl.training.optimization import OptimizerFactory, SchedulerFactory
from grpo_pl.training.policy_models import PolicyModels, scored_tokens
from grpo_pl.training.ranks import data_ranks
from grpo_pl.training.silent_sample import SilentSample
from grpo_pl.training.skipped_steps import Source
from grpo_pl.training.validation import Evaluation
from grpo_pl.types import Experience, Prompt, Rollout, ScoredSamples, Sequences, TokenScores


class PolicyOptimization(PolicyModels):
    """Policy gradient on a language model; the components determine the algorithm.

    Args:
        policy: The model that is trained.
        rewards: Rewards of responses by name: the weighted sum is maximised, each one is logged.
        advantage: How rewards become advantages of tokens.
        loss: The surrogate of each token.
        aggregation: How the losses of tokens become the loss of an optimizer step.
        kl: Penalty on leaving the reference; null for none.
        reference: The frozen model that `kl` or `advantage` compares with, the teacher in distillation; built
            only if one of them needs it.
        reference_update: How the reference follows the policy; null leaves it as it is.
        critic: The value model; only for advantages that need one.
        value_loss: The critic's loss.
        critic_lr: Learning rate of the critic's own parameters; null for that of the optimizer.
        critic_warmup: First iterations, in which only the critic's own parameters learn, at their full rate;
            the policy's schedule, the KL's controller and the reference start after them.
        reward_transforms: Transforms of rewards before advantages, in this order.
        correction: Weights or rejection for the mismatch between engine and trainer; null for none.
        masks: Which response tokens are left out of the loss.
        entropy: Bonus for the policy's entropy; null for none.
        terms: Further terms of the loss, by name.
        verifiers: Measures of validation by name: `val/<name>` is the share of problems solved.
        optimizer: Optimizer of all trained parameters.
        lr_scheduler: Stepped after each optimizer step on the policy; null for a constant learning rate.
        read_silent: Of the responses without an advantage, so many are read for the metrics in each
            iteration, over all ranks: entropy, clip fractions and their like are then estimates over all
            responses. 0 for none; where a KL or a critic reads all responses, there is nothing to add.
        empty_steps: What the policy does where its gradient is exactly 0, as when no response has an
            advantage: `take` the step, which the optimizer's momentum and weight decay make (as TRL does),
            or `skip` it (prime-rl drops such batches).
    """

    def __init__(
        self,
        policy: ModelBuilder,
        rewards: dict[str, RewardFunction],
        advantage: AdvantageEstimator,
        loss: PolicyLoss,
        aggregation: Aggregation,
        kl: KLPenalty | None = None,
        reference: ModelBuilder | None = None,
        reference_update: ReferenceUpdate | None = None,
        critic: ModelBuilder | None = None,
        value_loss: ClippedValueLoss | None = None,
        critic_lr: float | None = None,
        critic_warmup: int = 0,
        reward_transforms: list[RewardTransform] | None = None,
        correction: MismatchCorrection | None = None,
        masks: list[TokenMask] | None = None,
        entropy: EntropyBonus | None = None,
        terms: dict[str, LossTerm] | None = None,
        verifiers: dict[str, Verifier] | None = None,
        optimizer: OptimizerFactory = lambda p: torch.optim.AdamW(p, lr=1e-6),
        lr_scheduler: SchedulerFactory | None = None,
        read_silent: int = 0,
        empty_steps: Literal["take", "skip"] = "take",
    ) -> None:
        super().__init__()
        check_at_least(0, read_silent=read_silent)
        used = check_components(rewards, advantage, kl, policy, reference, critic)
        check_critic(advantage, critic, critic_lr, critic_warmup)
        check_reference_update(reference_update, used)
        check_advantage_sources(advantage, rewards, reward_transforms or [])
        check_losses(loss, terms or {}, correction, rewards)
        check_names("model.verifiers", verifiers or {})
        check_optimizer(optimizer, lr_scheduler)
        value_loss = (value_loss or ClippedValueLoss()) if critic else None
        terms_by_name = all_terms(terms or {}, policy=loss, kl=kl, entropy=entropy, value=value_loss)
        self.centers_scores = check_centering(terms or {}, loss, correction)
        self.builders = {"policy": policy, "reference": used, "critic": critic}
        self.idle_reference = reference is not used
        self.rewards, self.verifiers = rewards, verifiers or {}
        self.advantage, self.kl, self.reference_update = advantage, kl, reference_update
        self.objective = Objective(terms_by_name, aggregation)
        self.critic_lr, self.critic_warmup = critic_lr, critic_warmup
        self.reward_transforms = nn.ModuleList(reward_transforms or [])
        self.correction, self.masks, self.entropy = correction, masks or [], entropy
        self.optimizer, self.lr_scheduler, self.empty_steps = optimizer, lr_scheduler, empty_steps
        self.min_group_size, self.needs_greedy = advantage.min_group_size, advantage.needs_greedy
        self.corrects_mismatch = correction is not None or loss.of_sampler or advantage.of_any_policy
        self.read_silent, self.read_tokens = read_silent, ReadTokens()

    @override
    def learning_rates(self) -> dict[str, float | None]:
        return {"critic": self.critic_lr}

    @override
    def forward(self, batch: Sequences) -> TokenScores:
        """The scores of a micro-batch by the trained models."""
        assert self.policy is not None, "configure_model comes first"
        entropy = "gradient" if self.objective.needs_entropy else "value"
        chosen = batch.token_ids, batch.loss_mask, batch.temperature
        teacher = self.teacher_of(batch)
        scores = self.policy(*chosen, entropy, batch.candidates, batch.renormalized, teacher=teacher)
        values = None
        if self.critic is not None:
            values = self.critic(batch.token_ids, batch.loss_mask, scores.hidden)
        return scored_tokens(scores, values=values)

    # ---------------------------------------------------------------------------------- rollout -> experience

    @property
    def version(self) -> int:
        """Optimizer steps taken so far."""
        return self.trainer.global_step

    @property
    def reads_silent(self) -> bool:
        """Whether responses without an advantage are read too: a term, a mask or a statistic needs them."""
        rejects = self.correction is not None and self.correction.rejects
        by_entropy = any(mask.needs_entropy for mask in self.masks)
        return any((len(self.objective.terms) > 1, by_entropy, rejects, self.advantage.needs_reference))

    @property
    def scores_first(self) -> bool:
        """Whether scores of policy and critic are needed before the first optimizer step."""
        by_entropy = any(mask.needs_entropy for mask in self.masks)
        of_old = (self.kl is not None and self.kl.needs_old_logprobs, self.advantage.needs_reference)
        corrected = self.correction is not None and self.correction.needs_old_logprobs
        prepared, critic = self.objective.prepares_with_old_logprobs, self.builders["critic"] is not None
        return any((*of_old, corrected, prepared, critic, by_entropy))

    @property
    def reward_names(self) -> Sequence[str]:
        """The names of the rewards."""
        return list(self.rewards)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks; collective."""
        total = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return data_ranks(self.trainer).counted_once(total)

    def check_prompts(self, key: str, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts if some reward or verifier can check none of their answers."""
        check_answers("model.rewards", self.rewards, key, prompts)
        check_answers("model.verifiers", self.verifiers, key, prompts)

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Refuse rollouts without the tokens that a term reads, or with tokens that none can read."""
        check_top_logprobs_read(sampling.top_logprobs, self.centers_scores)
        check_whole_distributions(self.kl, sampling)

    def check_environment(self, plays: bool) -> None:
        """Refuse rewards and verifiers of what an environment pays, where there is none."""
        check_environment(plays, {"model.rewards": self.rewards, "model.verifiers": self.verifiers})

    @property
    def reward_stage(self) -> RewardStage:
        """The rewards and their transforms, on this device."""
        transforms: list[RewardTransform] = list(self.reward_transforms)  # type: ignore[arg-type]
        return RewardStage(self.rewards, transforms, self.device, self.sum_over_ranks)

    def score(self, rollout: Rollout) -> ScoredSamples:
        """The rewards of a rollout's responses, computed once."""
        return self.reward_stage.score(rollout)

    def has_signal(self, rollout: Rollout) -> Tensor:
        """The responses of a scored rollout that can be learned from, before any model has scored it."""
        feedback = self.reward_stage.feedback(rollout, self.score(rollout), observe=False)
        return self.advantage.has_signal(feedback)

    def check_resampling(self, resample: DynamicSampling | None) -> None:
        """Refuse dynamic sampling that would judge by rewards which there are not, or replace nothing."""
        check_resampling(resample, self.advantage, self.rewards)

    def make_experience(self, rollout: Rollout, steps: Sequence[Step]) -> Experience:
        """Rewards, scores and advantages of a rollout, for the given optimizer steps on it."""
        ranks = data_ranks(self.trainer)
        make = ExperienceStage(
            rewards=self.reward_stage,
            advantage=self.advantage,
            kl=self.kl,
            masks=self.masks,
            correction=self.correction,
            terms=[*self.objective.terms.values()],
            trained=self._as_in_training(self.trainer.model),
            reference=self._as_in_training(self.reference_scores) if self.reads_reference else None,
            reads_silent=self.reads_silent,
            silent=SilentSample(self.read_silent, ranks.rank, ranks.size, self.sum_over_ranks),
            scores_first=self.scores_first,
        )
        return make(rollout, steps, self.version)

    def _as_in_training(self, model: Any) -> Scorer:
        """Scores in the precision of `training_step`."""

        def scorer(batch: Sequences) -> TokenScores:
            with self.trainer.precision_plugin.forward_context():
                scores: TokenScores = model(batch)
                return scores

        return scorer

    # ------------------------------------------------------------------------------------- experience -> loss

    @override
    def training_step(self, batch: Experience, batch_idx: int) -> Tensor:
        scores = self.scores(batch)
        terms = self.objective(scores, batch)
        bypassed = self.correction is not None and self.correction.bypasses
        trainers = scores.logprobs.detach() if bypassed else batch.old_logprobs
        gap = torch.where(batch.read, batch.sampling_logprobs - trainers, 0.0).abs()
        last = batch_idx + 1 == self.trainer.num_training_batches
        self._log_step(batch, scores, terms.metrics | {"sync/logprob_mismatch": gap}, last=last)
        made_of = batch.numbers | {"logprobs": scores.logprobs, "values": scores.values}
        made_of |= {f"term {name}": loss for name, loss in terms.tokens.items()}
        loss = self.guarded(terms.total, gap.max(), made_of=made_of)
        # Lightning divides by the micro-batches and strategies average over ranks: undo both, shares add up.
        return loss * self.trainer.accumulate_grad_batches * data_ranks(self.trainer).size

    @override
    def term_sources(self) -> dict[str, Source]:
        return {
            f"term {name}": Source(term.description or f"the term {name}", term.advice)
            for name, term in self.objective.terms.items()
        }

    def scores(self, batch: Experience) -> TokenScores:
        """The scores of a micro-batch; fills in old log-probabilities that it lacks."""
        scores: TokenScores = self(batch)
        if batch.has_old_logprobs is not None:
            known = batch.has_old_logprobs[:, None]
            batch.old_logprobs = torch.where(known, batch.old_logprobs, scores.logprobs.detach())
        return scores

    def _log_step(
        self, batch: Experience, scores: TokenScores, metrics: dict[str, Tensor], *, last: bool
    ) -> None:
        """Log the iteration's metrics with its first micro-batch, the means over tokens with its last."""
        assert self.policy is not None, "configure_model comes first"
        log = partial(self.log_dict, on_step=False, on_epoch=True, batch_size=1)
        log(batch.metrics | {"train/padding": self.policy.padding}, sync_dist=True)
        if scores.entropy is not None:
            metrics = metrics | {"train/entropy": scores.entropy}
        self.read_tokens.add(metrics, scores.logprobs, batch)
        if last:
            means, highest = self.read_tokens.compute(self.sum_over_ranks), self.read_tokens.highest_mismatch
            self.read_tokens = ReadTokens()
            log(means)
            if "sync/logprob_mismatch" in means:
                log({"sync/logprob_mismatch_max": highest}, reduce_fx="max", sync_dist=True)

    @override
    def on_train_epoch_end(self) -> None:
        """Move the coefficients of KL and entropy and the reference, once in each iteration of the policy."""
        if self.warming_up:
            return
        divergence = self.trainer.callback_metrics.get("train/kl")
        if self.kl is not None and divergence is not None and divergence.isfinite():
            self.kl.adapt(float(divergence))
        if self.entropy is not None:
            self.entropy.adapt(self.trainer.callback_metrics.get("train/entropy"))
        if self.reference_update is not None:
            assert isinstance(self.reference, LanguageModel), "check_reference_update refuses others"
            weights = self.policy_weights()
            moved = self.current_epoch + 1 - self.critic_warmup
            self.reference_update(self.reference.language_model, weights, moved)

    # --------------------------------------------------------------------------------------------- validation

    @override
    def on_validation_epoch_start(self) -> None:
        self.evaluation = Evaluation(self.verifiers, self.device, data_ranks(self.trainer).copies)

    @override
    def validation_step(self, batch: Rollout, batch_idx: int) -> None:
        self.evaluation.update(batch)

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.evaluation.compute(), batch_size=1)
