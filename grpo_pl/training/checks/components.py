"""Checks that the components of the module go together."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from grpo_pl.advantages import AdvantageEstimator
from grpo_pl.losses import LossTerm, PolicyLoss, PositiveNLL
from grpo_pl.losses.correction import MismatchCorrection
from grpo_pl.losses.kl import KLPenalty
from grpo_pl.models import CausalLM, ModelBuilder
from grpo_pl.models.loading import vocabulary_size
from grpo_pl.models.reference_update import ReferenceUpdate
from grpo_pl.models.vocabulary import check_same_vocabulary
from grpo_pl.rewards.base import ProcessReward, RewardFunction
from grpo_pl.rewards.transforms import RewardTransform
from grpo_pl.rollout.dynamic_sampling import DynamicSampling
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.system.refusal import ArgumentError, ConfigError, about


def check_components(
    rewards: dict[str, RewardFunction],
    advantage: AdvantageEstimator,
    kl: KLPenalty | None,
    policy: ModelBuilder,
    reference: ModelBuilder | None,
    critic: ModelBuilder | None,
) -> ModelBuilder | None:
    """Refuse a run with nothing to learn from, and models that do not go together.

    Gives the reference if something compares with it, else None.
    """
    check_names("model.rewards", rewards)
    taught = not advantage.needs_rewards or (kl is not None and kl.teaches)
    if not taught and not any(reward.weight for reward in rewards.values()):
        raise ConfigError(
            "model.rewards has no reward with a weight other than 0: add one, for instance LastNumber"
        )
    if kl is None and not advantage.needs_reference:
        reference = None
    elif reference is None:
        key, other = ("kl", "null") if kl is not None else ("advantage", "GroupRelative")
        raise ConfigError(
            f"model.{key} needs a reference: set model.reference, for instance to CausalLM, or "
            f"model.{key} to {other}"
        )
    check_vocabularies(policy, reference, critic)
    if kl is not None and kl.top_k is not None and reference is not None and reference.pretrained:
        known = vocabulary_size(reference.pretrained)
        if kl.top_k > known:
            with about(kl):
                raise ArgumentError(f"top_k={kl.top_k}: the reference has {known} tokens: set it to fewer")
    return reference


def check_vocabularies(policy: ModelBuilder, *others: ModelBuilder | None) -> None:
    """Refuse a reference or critic that does not read the policy's tokens: from the folders, without weights.

    Reward models of `model.rewards` read text, and may have a tokenizer of their own.
    """
    for other in (part for one in others if one is not None for part in one.parts):
        if other.pretrained and policy.pretrained:
            with about(other):
                check_same_vocabulary(other.pretrained, policy.pretrained)


def check_names(key: str, named: Mapping[str, object]) -> None:
    """Refuse names that cannot be columns of `metrics.csv`."""
    for name in named:
        if not re.fullmatch(r"\w[\w.-]*", str(name)) or not isinstance(name, str):
            raise ConfigError(
                f"{key}: {name!r} cannot be the name of a metric: use letters, digits, _, - and ., in quotes "
                "where they look like a number"
            )


def check_optimizer(
    optimizer: Callable[[Any], Optimizer], lr_scheduler: Callable[[Optimizer], Any] | None
) -> None:
    """Build both for one parameter, so that wrong settings are refused before any model is loaded."""
    try:
        built = optimizer([nn.Parameter(torch.zeros(2, 2))])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.optimizer: {error}") from error
    if lr_scheduler is None:
        return
    try:
        schedule = lr_scheduler(built)
        if isinstance(schedule, ReduceLROnPlateau):
            raise ValueError("ReduceLROnPlateau follows a metric, and there is none after an optimizer step")
        with warnings.catch_warnings(action="ignore"):  # that the optimizer has made no step
            schedule.step()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"model.lr_scheduler: {error}; set it to another one, or to null") from error


def check_critic(
    advantage: AdvantageEstimator, critic: ModelBuilder | None, critic_lr: float | None, critic_warmup: int
) -> None:
    """Refuse an unused critic, an advantage without the critic that it needs, and odd schedules."""
    name = type(advantage).__name__
    if advantage.needs_critic and critic is None:
        raise ConfigError(
            f"model.advantage {name} needs a critic: set model.critic, for instance to ValueHead"
        )
    if critic is not None and not advantage.needs_critic:
        raise ConfigError(
            f"model.critic is set and model.advantage {name} does not use it: set model.critic to null, or "
            "model.advantage to GAE"
        )
    if critic is None and (critic_lr is not None or critic_warmup):
        raise ConfigError(
            f"model.critic_lr={critic_lr} and model.critic_warmup={critic_warmup} speak of a critic, and "
            "there is none: set them to null and 0, or model.critic to ValueHead"
        )
    if critic_lr is not None and critic_lr <= 0:
        raise ConfigError(f"model.critic_lr={critic_lr}: expected more than 0, or null for the optimizer's")
    if critic_warmup < 0:
        raise ConfigError(f"model.critic_warmup={critic_warmup}: expected 0 or more iterations")


def check_losses(
    loss: PolicyLoss,
    terms: Mapping[str, LossTerm],
    correction: MismatchCorrection | None,
    rewards: Mapping[str, RewardFunction],
) -> None:
    """Refuse to correct twice for the mismatch between engine and trainer, and terms of unknown rewards."""
    if correction is not None and loss.of_sampler:
        raise ConfigError(
            f"model.correction {type(correction).__name__} and model.loss {type(loss).__name__}, whose ratio "
            "is to the engine's probabilities, would both correct for the mismatch: set model.correction to "
            "null, or the behaviour of that loss to old"
        )
    weighted = [name for name, reward in rewards.items() if reward.weight]
    for name, term in terms.items():
        if not isinstance(term, PositiveNLL):
            continue
        if not weighted:
            raise ConfigError(
                f"model.terms.{name} asks the rewards which responses are right, and none has a weight: add "
                f"one to model.rewards, or set model.terms.{name} to null"
            )
        if term.by is not None and term.by not in weighted:
            raise ConfigError(
                f"model.terms.{name}.by={term.by} is no reward with a weight: set it to null, or to "
                f"{' or '.join(weighted)}"
            )


def check_whole_distributions(kl: KLPenalty | None, sampling: SamplingConfig) -> None:
    """Refuse a KL between distributions over the vocabulary where the policy is scored among other tokens."""
    if kl is None or not kl.compares_distributions:
        return
    name = type(kl).__name__
    if sampling.truncates:
        raise ConfigError(
            f"data.sampling.top_p={sampling.top_p:g} and data.sampling.top_k={sampling.top_k} let the policy "
            f"choose from a part of the vocabulary, and model.kl {name} compares distributions over all of "
            "it: set top_p to 1 and top_k to 0, or model.kl to KLInLoss"
        )
    if sampling.top_logprobs:
        raise ConfigError(
            f"data.sampling.top_logprobs={sampling.top_logprobs} has the policy score the sampler's "
            f"likeliest tokens and model.kl {name} those of the reference, and it can score one kind alone: "
            "set model.kl to KLInLoss, or top_logprobs to 0 without ScoreCentering in model.terms"
        )


def check_reference_update(reference_update: ReferenceUpdate | None, reference: ModelBuilder | None) -> None:
    """Refuse to move a reference that does not exist, is the policy itself, or would not move."""
    if reference_update is None:
        return
    if reference is None:
        raise ConfigError(
            "model.reference_update moves a reference that nothing compares with: set model.kl, for "
            "instance to KLInLoss, or model.reference_update to null"
        )
    if not reference.has_own_weights:
        raise ConfigError(
            f"model.reference_update cannot move model.reference {type(reference).__name__}, "
            "which is the policy itself: set model.reference to CausalLM, or model.reference_update to null"
        )
    if reference_update.small_steps and isinstance(reference, CausalLM) and reference.dtype != "float32":
        raise ConfigError(
            f"model.reference.dtype={reference.dtype} rounds the small steps of model.reference_update "
            f"{type(reference_update).__name__} away: set it to float32"
        )


def check_advantage_sources(
    advantage: AdvantageEstimator,
    rewards: dict[str, RewardFunction],
    reward_transforms: Sequence[RewardTransform],
) -> None:
    """Refuse rewards that the advantage cannot use, or would not see."""
    name = type(advantage).__name__
    if advantage.needs_steps and not any(
        isinstance(reward, ProcessReward) and reward.weight for reward in rewards.values()
    ):
        raise ConfigError(
            f"model.advantage {name} needs rewards of steps: add a process reward with a weight other than 0 "
            "to model.rewards, or set model.advantage to GroupRelative"
        )
    if advantage.reads_named_rewards and reward_transforms:
        raise ConfigError(
            f"model.reward_transforms change the sum of the rewards, and model.advantage {name} reads each "
            "reward on its own: set model.reward_transforms to null"
        )


def check_resampling(
    resample: DynamicSampling | None, advantage: AdvantageEstimator, rewards: Mapping[str, RewardFunction]
) -> None:
    """Refuse dynamic sampling by rewards that there are not, and one that would replace nothing."""
    if resample is None:
        return
    name = type(advantage).__name__
    if unknown := [one for one in resample.by or [] if one not in rewards]:
        instead = f"set it to {' or '.join(rewards)}" if rewards else "add it, or set data.resample to null"
        raise ConfigError(
            f"data.resample.by={unknown[0]}: model.rewards has no reward of this name: {instead}"
        )
    alone = advantage.min_group_size == 1 and not advantage.needs_greedy
    if resample.by is None and (alone or advantage.needs_reference):
        raise ConfigError(
            f"data.resample would replace nothing: model.advantage {name} learns from every response; set "
            f"data.resample.by to the reward to judge by, for instance {next(iter(rewards), 'correct')}, or "
            "data.resample to null"
        )


def check_environment(plays: bool, rewards: Mapping[str, Mapping[str, RewardFunction]]) -> None:
    """Refuse rewards, by their config key and name, that read what an environment pays, where none plays."""
    for key, named in rewards.items():
        for name, reward in named.items():
            if reward.needs_environment and not plays:
                raise ConfigError(
                    f"{key}.{name} reads what an environment pays, and there is none: set data.environment"
                )
