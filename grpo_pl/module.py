"""PolicyOptimization: holds the components and states the objective."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from grpo_pl.advantages import AdvantageEstimator
from grpo_pl.functional import group_is_constant, group_size, groups_with, masked_mean, prompt_weights
from grpo_pl.loop import Step, first_pass
from grpo_pl.losses import Aggregation, ClippedValueLoss, PolicyLoss
from grpo_pl.losses.correction import ImportanceCorrection
from grpo_pl.losses.kl import EntropyBonus, KLPenalty
from grpo_pl.losses.masks import TokenMask
from grpo_pl.losses.objective import Objective
from grpo_pl.models import LanguageModel, ModelBuilder, WithoutAdapter
from grpo_pl.models.builder import Place
from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.reference_update import ReferenceUpdate
from grpo_pl.rewards.base import RewardFunction, Verifier, score_samples
from grpo_pl.rewards.feedback import RewardStage
from grpo_pl.rewards.transforms import RewardTransform
from grpo_pl.runs.same_model import check_fits
from grpo_pl.training.checks.components import (
    check_advantage_sources,
    check_components,
    check_critic,
    check_names,
    check_optimizer,
    check_reference_update,
)
from grpo_pl.training.checks.prompts import check_answers
from grpo_pl.training.metrics import EffectiveSampleSize, rollout_metrics, sample_records
from grpo_pl.training.optimization import OptimizedModule, OptimizerFactory, SchedulerFactory
from grpo_pl.training.strategies import data_ranks, num_shards, place
from grpo_pl.training.validation import Evaluation
from grpo_pl.types import Experience, Prompt, Rollout, TokenScores


class PolicyOptimization(OptimizedModule):
    """Policy gradient on a language model; which algorithm it is, the components say.

    Args:
        policy: The model that is trained.
        rewards: What a response is worth, by name: the weighted sum is maximised, each one is logged.
        advantage: How rewards become advantages of tokens.
        loss: The surrogate of each token.
        aggregation: How the losses of tokens become the loss of an optimizer step.
        kl: Penalty on leaving the reference; null for none.
        reference: The frozen model that `kl` compares with; built only if `kl` is set.
        reference_update: How the reference follows the policy; null leaves it as it is.
        critic: The value model; only for advantages that need one.
        value_loss: The critic's loss.
        critic_lr: Learning rate of the critic's own parameters; null for that of the optimizer.
        critic_warmup: Iterations at the start in which only the critic's own parameters learn.
        reward_transforms: What is done to rewards before advantages, in this order.
        correction: Weights for the mismatch between engine and trainer; null for none.
        masks: Which response tokens are left out of the loss.
        entropy: Bonus for an undecided policy; null for none.
        verifiers: What validation measures, by name: `val/<name>` is the share of problems solved.
        optimizer: Of all trained parameters.
        lr_scheduler: Stepped after each optimizer step; null for a constant learning rate.
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
        correction: ImportanceCorrection | None = None,
        masks: list[TokenMask] | None = None,
        entropy: EntropyBonus | None = None,
        verifiers: dict[str, Verifier] | None = None,
        optimizer: OptimizerFactory = lambda p: torch.optim.AdamW(p, lr=1e-6),
        lr_scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        check_components(rewards, kl, reference)
        check_critic(advantage, critic, critic_lr, critic_warmup)
        check_reference_update(reference_update, kl, reference)
        check_advantage_sources(advantage, rewards, kl, reward_transforms or [])
        check_names("model.verifiers", verifiers or {})
        check_optimizer(optimizer, lr_scheduler)
        self.builders = {"policy": policy, "reference": reference if kl else None, "critic": critic}
        self.idle_reference = reference is not None and kl is None
        self.rewards, self.verifiers = rewards, verifiers or {}
        self.advantage, self.loss, self.aggregation, self.kl = advantage, loss, aggregation, kl
        self.reference_update, self.value_loss = reference_update, value_loss or ClippedValueLoss()
        self.critic_lr, self.critic_warmup = critic_lr, critic_warmup
        self.reward_transforms = nn.ModuleList(reward_transforms or [])
        self.correction, self.masks, self.entropy = correction, masks or [], entropy
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        by_entropy = any(mask.needs_entropy for mask in self.masks)
        self.reads_silent = any((kl, critic, entropy, by_entropy))
        self.scores_first = any((kl and kl.needs_old_logprobs, critic, correction, by_entropy))
        self.min_group_size, self.needs_greedy = advantage.min_group_size, advantage.needs_greedy
        self.corrects_mismatch = correction is not None
        self.effective = EffectiveSampleSize()
        self.policy: LanguageModel | None = None
        self.critic: nn.Module | None = None
        self.reference: LanguageModel | WithoutAdapter | None

    # ------------------------------------------------------------------------------------------------- models

    @override
    def configure_model(self) -> None:
        if self.policy is None:
            self.build(partial(place, self.trainer.strategy))

    def build(self, place: Place) -> None:
        """Build every model where `place` puts it.

        Raises:
            ValueError: If a builder builds what has no place here, with the key to change.
        """

        def language_model(key: str, policy: nn.Module | None = None) -> LanguageModel | WithoutAdapter:
            built = self.builders[key].build(policy)  # type: ignore[union-attr]
            if not isinstance(built, LanguageModel | WithoutAdapter):
                raise ValueError(f"model.{key} builds no language model: set it to CausalLM")
            return built

        self.policy = cast(LanguageModel, place(lambda: language_model("policy")))
        policy = getattr(self.policy, "module", self.policy)  # FSDP1 wraps it
        if (critic := self.builders["critic"]) is not None:
            self.critic = place(lambda: critic.build(policy))
        for reward in self.rewards.values():
            reward.build(place)
        reference = None
        if self.builders["reference"] is not None:
            reference = place(lambda: language_model("reference", policy).requires_grad_(False).eval())
        if self.reference_update is None:
            object.__setattr__(self, "reference", reference)  # unregistered: in no checkpoint
        else:
            self.reference = cast(LanguageModel, reference)

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {"policy": [], "critic": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["critic" if name.startswith("critic.") else "policy"].append(parameter)
        return groups

    @override
    def held_models(self) -> dict[str, nn.Module]:
        rewards = {f"rewards.{name}": reward.held_model for name, reward in self.rewards.items()}
        own = {"policy": self.policy, "critic": self.critic, "reference": self.reference}
        return {name: model for name, model in (own | rewards).items() if model is not None}

    @override
    def learning_rates(self) -> dict[str, float | None]:
        return {"critic": self.critic_lr}

    @override
    def forward(self, batch: Experience) -> TokenScores:
        """What the trained models say of a micro-batch."""
        assert self.policy is not None, "configure_model comes first"
        entropy = "value" if self.entropy is None else "gradient"
        said = self.policy(batch.token_ids, batch.loss_mask, batch.temperature, entropy)
        values = None
        if self.critic is not None:
            values = self.critic(batch.token_ids, batch.loss_mask, said.hidden)
        return TokenScores(logprobs=said.logprobs, entropy=said.entropy, values=values)

    # ---------------------------------------------------------------------------------- rollout -> experience

    @property
    def version(self) -> int:
        """Optimizer steps taken so far."""
        return self.trainer.global_step

    def policy_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters, whole, one at a time, under their Hugging Face names.

        Args:
            dtype: Of what is divided among ranks, before it is gathered; null for what it is held in.
        """
        assert self.policy is not None, "configure_model comes first"
        for name, tensor in full_weights(self.policy, dtype):
            yield name.removeprefix("language_model."), tensor

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks; collective."""
        total = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return data_ranks(self.trainer).counted_once(total)

    def check_prompts(self, key: str, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts of which some reward or verifier can check no answer."""
        check_answers("model.rewards", self.rewards, key, prompts)
        check_answers("model.verifiers", self.verifiers, key, prompts)

    @property
    def reward_stage(self) -> RewardStage:
        """The rewards and what is done to them, on this device."""
        transforms: list[RewardTransform] = list(self.reward_transforms)  # type: ignore[arg-type]
        return RewardStage(self.rewards, transforms, self.device, self.sum_over_ranks)

    def groups_with_signal(self, rollout: Rollout) -> list[bool]:
        """Of each group, whether the rewards of its responses differ."""
        scored = score_samples(self.rewards, rollout.samples)
        groups, known = rollout.group_ids, scored.scored
        constant = group_is_constant(scored.total, groups, known) | (group_size(groups, known) < 2)
        return groups_with(~constant, groups).tolist()

    @torch.no_grad()
    def make_experience(self, rollout: Rollout, steps: Sequence[Step]) -> Experience:
        """Rewards, scores and advantages of a rollout that is learned from in the given optimizer steps.

        It is scored in the very micro-batches of the first update epoch, through the strategy's wrapper and
        in `training_step`'s precision: so the first ratio is exactly 1, whatever the precision. What is read
        once, in the first step, is not scored by the trained models unless something asks for their scores
        before: that step's own forward gives the old log-probabilities, to the last bit.
        """
        samples = rollout.samples
        scored = score_samples(self.rewards, samples)
        feedback = self.reward_stage.feedback(rollout, scored, samples)
        mask, blank = feedback.loss_mask, torch.zeros_like(feedback.rewards)
        experience = Experience(
            token_ids=rollout.token_ids.to(self.device),
            loss_mask=mask,
            sampling_logprobs=rollout.sampling_logprobs.to(self.device),
            old_logprobs=blank,
            advantages=blank,
            temperature=rollout.temperature,
        )
        credit = None if self.reads_silent else self.advantage(feedback)
        if credit is not None:  # without an advantage a sequence has no gradient
            experience.active = (credit.advantages != 0).any(-1)
        first = first_pass(steps)
        unscored = first[:1] if len(first) == len(steps) and not self.scores_first else []
        if unscored:
            experience.scored = torch.ones_like(mask[:, 0])
            experience.scored[[row for step in unscored for rows in step for row in rows]] = False
        scores = self._scores(self.trainer.model, experience, first[len(unscored) :])
        experience.old_logprobs = scores.logprobs
        experience.old_values = feedback.values = scores.values
        if self.kl is not None:
            experience.ref_logprobs = self._scores(self._reference_scores, experience, first).logprobs
            cost = self.kl.cost(scores.logprobs, experience.ref_logprobs)
            feedback.rewards = feedback.rewards if cost is None else feedback.rewards - mask * cost
        credit = credit or self.advantage(feedback)
        experience.advantages, experience.returns = credit.advantages, credit.returns
        for token_mask in self.masks:
            kept = token_mask(feedback, blank if scores.entropy is None else scores.entropy)
            experience.kept = kept if experience.kept is None else experience.kept & kept
        experience.prompt_weights = prompt_weights(
            experience.counted.sum(-1), feedback.group_ids, self.sum_over_ranks
        )
        experience.metrics = rollout_metrics(rollout, experience, self.version, self.sum_over_ranks)
        experience.metrics |= scored.metrics(self.sum_over_ranks)
        if self.kl is not None:
            experience.metrics["train/kl_coefficient"] = float(self.kl.coefficient)
        if self.correction is not None:
            correction = self.correction(
                scores.logprobs, experience.sampling_logprobs, experience.read, self.sum_over_ranks
            )
            experience.weights = correction.weights
            experience.metrics |= correction.metrics
        experience.records = sample_records(rollout, scored, experience)
        return experience

    def _scores(self, model: Any, experience: Experience, steps: Sequence[Step]) -> TokenScores:
        """What a model says of the active sequences among the given ones; zero elsewhere."""
        read = [experience.among(rows) for step in steps for rows in step]
        parts: list[TokenScores] = []
        for rows in read:
            batch = experience.select(rows, num_tokens=0, num_sequences=0)
            with self.trainer.precision_plugin.forward_context():
                parts.append(model(batch))
        return TokenScores.assemble(parts, read, like=experience.advantages)

    def _reference_scores(self, batch: Experience) -> TokenScores:
        assert self.reference is not None, "check_components refuses a KL without a reference"
        return TokenScores(
            logprobs=self.reference(batch.token_ids, batch.loss_mask, batch.temperature).logprobs
        )

    # ------------------------------------------------------------------------------------- experience -> loss

    @override
    def training_step(self, batch: Experience, batch_idx: int) -> Tensor:
        self.log_dict(batch.metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        assert self.policy is not None, "configure_model comes first"
        scores = self.scored(batch)
        self.log(
            "train/padding", self.policy.padding, on_step=False, on_epoch=True, batch_size=1, sync_dist=True
        )
        terms = self.objective(scores, batch)
        gap = torch.where(batch.read, batch.sampling_logprobs - batch.old_logprobs, 0.0).abs()
        worst = {"on_step": False, "on_epoch": True, "reduce_fx": "max", "sync_dist": True, "batch_size": 1}
        self.log("sync/logprob_mismatch_max", gap.max(), **worst)  # type: ignore[arg-type]
        metrics = terms.metrics | {"sync/logprob_mismatch": gap}
        if scores.entropy is not None:
            metrics["train/entropy"] = scores.entropy.detach()
        self._log_tokens(metrics, batch)
        self.effective.update(scores.logprobs.detach(), batch)
        self.log("train/effective_sample_size", self.effective, on_step=False, on_epoch=True, batch_size=1)
        said = {"logprobs": scores.logprobs, "values": scores.values}
        loss = self.guarded(terms.total, gap.max(), made_of=batch.numbers | said | terms.tokens)
        # Lightning divides by the micro-batches and strategies average over ranks: undo both, shares add up.
        return loss * self.trainer.accumulate_grad_batches * data_ranks(self.trainer).size

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        value_loss = None if self.builders["critic"] is None else self.value_loss
        return Objective(self.loss, self.aggregation, self.kl, self.entropy, value_loss)

    def scored(self, batch: Experience) -> TokenScores:
        """What the trained models say of a micro-batch, which from then on has its old log-probabilities."""
        scores: TokenScores = self(batch)
        if batch.scored is not None:
            known = batch.scored[:, None]
            batch.old_logprobs = torch.where(known, batch.old_logprobs, scores.logprobs.detach())
        return scores

    def _log_tokens(self, metrics: dict[str, Tensor], batch: Experience) -> None:
        means = {name: masked_mean(value, batch.read) for name, value in metrics.items()}
        tokens = max(int(batch.read.sum()), 1)
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=tokens, sync_dist=True)

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Take the policy's gradients away while the critic warms up: nothing moves or remembers them."""
        if self.policy is not None and self.current_epoch < self.critic_warmup:
            self.policy.zero_grad(set_to_none=True)

    @override
    def on_train_epoch_end(self) -> None:
        """Move what moves once an iteration: the KL's coefficient and the reference."""
        divergence = self.trainer.callback_metrics.get("train/kl")
        if self.kl is not None and divergence is not None and divergence.isfinite():
            self.kl.adapt(float(divergence))
        if self.reference_update is not None:
            assert isinstance(self.reference, LanguageModel), "check_reference_update refuses others"
            weights = self.policy_weights()
            self.reference_update(self.reference.language_model, weights, self.current_epoch + 1)

    # ----------------------------------------------------------------------------------------------- restarts

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the policy's weights that stay as pretrained."""
        if self._keeps_whole_checkpoints:
            for name in self._frozen():
                checkpoint["state_dict"].pop(name, None)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights that were left out from the pretrained model; refuse those of another run."""
        if "state_dict" in checkpoint:  # else the strategy has loaded all of it, shard by shard
            checkpoint["state_dict"] = self._frozen() | checkpoint["state_dict"]
        if self._keeps_whole_checkpoints:  # of shards, the strategy finds out
            check_fits(
                checkpoint, self.state_dict(), self.configure_optimizers() if self.trainer.training else None
            )

    def _frozen(self) -> dict[str, Tensor]:
        """The parameters that are never trained, as they are under a LoRA policy's adapters."""
        assert self.policy is not None, "configure_model comes first"
        named = self.policy.named_parameters("policy", remove_duplicate=False)
        return {name: parameter.detach() for name, parameter in named if not parameter.requires_grad}

    @property
    def _keeps_whole_checkpoints(self) -> bool:
        """Whether a checkpoint is one file that rank 0 writes of what it holds itself."""
        return num_shards(self.trainer) == 1

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
