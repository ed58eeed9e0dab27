"""Our components on a batch, each with the outputs that a peer's formula is compared in."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from parity_batches import Batch, two_distributions
from torch import Tensor

from grpo_pl.advantages import (
    AdvantageEstimator,
)
from grpo_pl.functional import outcome_rewards, whiten
from grpo_pl.losses import (
    Aggregation,
    ClippedValueLoss,
    LossTerm,
    PolicyLoss,
    TokenMean,
)
from grpo_pl.losses.correction import ImportanceCorrection, MismatchCorrection
from grpo_pl.losses.distillation import TeacherKL
from grpo_pl.losses.entropy import EntropyBonus, TargetEntropy
from grpo_pl.losses.kl import AdaptiveCoefficient, EstimatedKL, KLInLoss, KLInReward
from grpo_pl.losses.masks import TopEntropy
from grpo_pl.types import Experience, Feedback, TokenScores, only_here

Outputs = dict[str, Tensor]
Ours = Callable[[Batch], Outputs]


def feedback_of(batch: Batch, rewards: Tensor) -> Feedback:
    """What the learner would hand the estimator."""
    weights = {"correct": 1.0, "format": 0.5}
    return Feedback(
        rewards=rewards,
        step_ends=torch.zeros_like(batch["mask"]),
        scored=batch["scored"],
        loss_mask=batch["mask"],
        group_ids=batch["group_ids"],
        truncated=torch.zeros_like(batch["scored"]),
        by_name={name: weight * batch[name] for name, weight in weights.items()},
        weights=weights,
        values=batch["old_values"],
        greedy=batch["greedy"],
        old_logprobs=batch["old_logprobs"],
        ref_logprobs=batch["ref_logprobs"],
    )


def advantage(
    estimator: AdvantageEstimator,
    *,
    rewards: str = "rewards",
    kl: EstimatedKL | None = None,
    factor: float = 1.0,
) -> Ours:
    """Advantages times `factor`, from `rewards` of responses or `token_rewards`, less a KL in the reward."""

    def ours(batch: Batch) -> Outputs:
        mask = batch["mask"]
        earned = outcome_rewards(batch[rewards], mask) if rewards == "rewards" else batch[rewards] * mask
        cost = None if kl is None else kl.cost(batch["old_logprobs"], batch["ref_logprobs"])
        feedback = replace(feedback_of(batch, earned), kl_cost=None if cost is None else mask * cost)
        credit = estimator.credit(feedback)
        out = {"advantages": factor * credit.advantages}
        return out if credit.returns is None else out | {"returns": torch.where(mask, credit.returns, 0.0)}

    return ours


def experience_of(batch: Batch, correction: ImportanceCorrection | None = None) -> Experience:
    """A micro-batch that is a whole optimizer step."""
    mask = batch["mask"]
    return Experience(
        token_ids=torch.zeros_like(mask, dtype=torch.int64),
        loss_mask=mask,
        sampling_logprobs=batch["sampling_logprobs"],
        old_logprobs=batch["old_logprobs"],
        advantages=batch["advantages"],
        temperature=1.0,
        ref_logprobs=batch["ref_logprobs"],
        returns=batch["returns"],
        old_values=batch["old_values"],
        weights=None if correction is None else weights_of(batch, correction),
        num_tokens=int(mask.sum()),
        num_sequences=int(mask.any(-1).sum()),
        all_sequences=len(mask),
    )


def weights_of(batch: Batch, correction: ImportanceCorrection) -> Tensor:
    """The weight of each token in the policy loss."""
    return correction(batch["old_logprobs"], batch["sampling_logprobs"], batch["mask"]).weights


def masked(batch: Batch, value: Tensor) -> Tensor:
    """0 at padding."""
    return torch.where(batch["mask"], value, 0.0)


def policy(
    loss: PolicyLoss,
    aggregation: Aggregation | None = None,
    *,
    kl: EstimatedKL | None = None,
    entropy: EntropyBonus | None = None,
    correction: ImportanceCorrection | None = None,
    term: LossTerm | None = None,
) -> Ours:
    """The objective of an optimizer step, its gradients, and the loss of each token; put together as in
    `PolicyOptimization.training_step`.
    """
    aggregate = aggregation or TokenMean()

    def ours(batch: Batch) -> Outputs:
        experience = experience_of(batch, correction)
        logprobs = batch["logprobs"].clone().requires_grad_()
        undecided = batch["entropy"].clone().requires_grad_()
        feedback = replace(feedback_of(batch, batch["token_rewards"]), by_name={"reward": batch["rewards"]})
        for prepares in (loss, *([] if term is None else [term])):
            experience.prepared |= prepares.prepare(experience, feedback, 0)
        tokens = loss(logprobs, experience).loss
        tokens = tokens if experience.weights is None else tokens * experience.weights
        tokens = tokens if kl is None else tokens + kl.loss(logprobs, experience)[0]
        tokens = tokens if entropy is None else tokens + entropy.loss(undecided)
        tokens = (
            tokens if term is None else tokens + term.term(TokenScores(logprobs=logprobs), experience).loss
        )
        objective = aggregate(tokens, experience)
        objective.backward()
        out = {"loss": objective, "gradient": logprobs.grad, "token_loss": masked(batch, tokens)}
        if undecided.grad is not None:
            out["entropy_gradient"] = undecided.grad
        return {name: value.detach() for name, value in out.items() if value is not None}

    return ours


def aggregation(aggregate: Aggregation, *, of_non_empty: bool = False) -> Ours:
    """The sum over tokens of any matrix, and its gradient; `of_non_empty` hides empty sequences from it."""

    def ours(batch: Batch) -> Outputs:
        matrix, experience = batch["token_advantages"].clone().requires_grad_(), experience_of(batch)
        if of_non_empty:
            experience.all_sequences = experience.num_sequences
        objective = aggregate(matrix, experience)
        return {"loss": objective.detach(), "gradient": torch.autograd.grad(objective, matrix)[0]}

    return ours


def divergence(kl: KLInLoss) -> Ours:
    """What the penalty says of each token, and the gradient of its sum over all of them."""

    def ours(batch: Batch) -> Outputs:
        logprobs = batch["logprobs"].clone().requires_grad_()
        estimate = kl.loss(logprobs, experience_of(batch))[0]
        (gradient,) = torch.autograd.grad(estimate.sum(), logprobs)
        return {"estimate": masked(batch, estimate.detach()), "gradient": gradient}

    return ours


def distillation(kl: TeacherKL) -> Ours:
    """What the divergence from a teacher says of each token, and the gradient of its sum."""

    def ours(batch: Batch) -> Outputs:
        logprobs = batch["logprobs"].clone().requires_grad_()
        student, teacher = (x.log_softmax(-1) for x in two_distributions(batch, logprobs))
        experience, scores = experience_of(batch), TokenScores(logprobs=logprobs)
        if kl.top_k is None:
            assert kl.divergence is not None
            scores.divergence = scores.reverse_kl = kl.divergence(student, teacher)
        else:
            experience.teacher_logprobs, ids = teacher.topk(kl.top_k, -1)
            scores.candidates = student.gather(-1, ids)
        estimate = torch.where(batch["mask"], kl.term(scores, experience).loss, 0.0)
        (gradient,) = torch.autograd.grad(estimate.sum(), logprobs)
        return {"estimate": estimate.detach(), "gradient": gradient}

    return ours


def correction(**options: Any) -> Ours:
    """The weight of each token in the policy loss."""
    return lambda batch: {"weights": masked(batch, weights_of(batch, ImportanceCorrection(**options)))}


def kept(correction: MismatchCorrection) -> Ours:
    """Where a correction keeps a token."""

    def ours(batch: Batch) -> Outputs:
        found = correction(batch["old_logprobs"], batch["sampling_logprobs"], batch["mask"]).kept
        return {"kept": (found & batch["mask"]).double()}

    return ours


def bypassed(loss: PolicyLoss, rejection: MismatchCorrection) -> Ours:
    """The loss with the engine's log-probabilities as old ones, over what a rejection by the policy keeps."""

    def ours(batch: Batch) -> Outputs:
        logprobs = batch["logprobs"].clone().requires_grad_()
        kept = rejection(logprobs.detach(), batch["sampling_logprobs"], batch["mask"]).kept & batch["mask"]
        sizes = {"num_tokens": int(kept.sum()), "num_sequences": int(kept.any(-1).sum())}
        experience = replace(
            experience_of(batch), old_logprobs=batch["sampling_logprobs"], kept=kept, **sizes
        )
        objective = TokenMean()(loss(logprobs, experience).loss, experience)
        (gradient,) = torch.autograd.grad(objective, logprobs)
        return {"loss": objective.detach(), "gradient": gradient}

    return ours


def weighed_and_kept(loss: PolicyLoss, correction: MismatchCorrection) -> Ours:
    """The loss with weights over what a correction keeps, divided by all tokens: as NeMo-RL, where we divide
    by those that stay.
    """

    def ours(batch: Batch) -> Outputs:
        logprobs = batch["logprobs"].clone().requires_grad_()
        found = correction(batch["old_logprobs"], batch["sampling_logprobs"], batch["mask"])
        experience = replace(experience_of(batch), kept=found.kept & batch["mask"])
        objective = TokenMean()(loss(logprobs, experience).loss * found.weights, experience)
        (gradient,) = torch.autograd.grad(objective, logprobs)
        return {"loss": objective.detach(), "gradient": gradient}

    return ours


def critic(loss: ClippedValueLoss) -> Ours:
    """The critic's loss as a mean over tokens, and its gradient."""

    def ours(batch: Batch) -> Outputs:
        experience = experience_of(batch)
        values = batch["values"].clone().requires_grad_()
        objective = TokenMean()(loss(values, experience).loss, experience)
        return {"loss": objective.detach(), "gradient": torch.autograd.grad(objective, values)[0]}

    return ours


def controller(batch: Batch) -> Outputs:
    """The coefficient after each of eight iterations of 4 responses: 40 responses are 10 iterations."""
    penalty = KLInLoss(0.1, controller=AdaptiveCoefficient(target=0.5, horizon=10.0).double())
    coefficients = []
    for divergence_now in batch["entropy"][:, 0].tolist():
        penalty.adapt(divergence_now)
        coefficients.append(float(penalty.coefficient))
    return {"coefficients": torch.tensor(coefficients, dtype=torch.float64)}


def whitened(batch: Batch) -> Outputs:
    """Any matrix over its masked entries."""
    return {"advantages": whiten(batch["token_advantages"], batch["mask"], only_here)}


def kl_in_reward(batch: Batch) -> Outputs:
    """The reward of each token with the cost taken off."""
    cost = KLInReward(0.001).cost(batch["old_logprobs"], batch["ref_logprobs"])
    return {"rewards": masked(batch, batch["token_rewards"] - cost)}


def target_entropy(batch: Batch) -> Outputs:
    """The coefficient held and the one applied after each of eight iterations."""
    controller = TargetEntropy(target=0.8, step=0.05, high=0.2).double()
    bonus, held, applied = EntropyBonus(0.1, controller), [], []
    for entropy in batch["entropy"][:, 0]:
        bonus.adapt(entropy)
        held.append(0.1 + float(controller.moved))
        applied.append(float(bonus.coefficient))
    return {"held": torch.tensor(held).double(), "applied": torch.tensor(applied).double()}


def most_undecided(batch: Batch) -> Outputs:
    """Where the mask keeps a token."""
    kept = TopEntropy(0.2)(feedback_of(batch, batch["token_rewards"]), masked(batch, batch["entropy"]))
    return {"kept": (kept & batch["mask"]).double()}
