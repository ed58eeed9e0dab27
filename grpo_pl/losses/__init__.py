"""Losses of the policy and the critic, token by token, and their aggregation."""

from grpo_pl.losses.aggregations import Aggregation, ConstantLength, PromptMean, SequenceMean, TokenMean
from grpo_pl.losses.base import LossTerm, PolicyLoss
from grpo_pl.losses.correction import Correction, MismatchCorrection
from grpo_pl.losses.covariance import ClipCov, KLCov
from grpo_pl.losses.distillation import TeacherKL
from grpo_pl.losses.entropy import EntropyBonus, TargetEntropy
from grpo_pl.losses.kl import AdaptiveCoefficient, KLInLoss, KLInReward, KLPenalty
from grpo_pl.losses.positive import PositiveNLL
from grpo_pl.losses.surrogates import CISPO, GMPO, GSPO, SAPO, ClippedSurrogate, Reinforce
from grpo_pl.losses.trust_region import DPPO, OffPolicyMask
from grpo_pl.losses.value import ClippedValueLoss
from grpo_pl.losses.vespo import VESPO
from grpo_pl.types import TokenLoss

__all__ = [
    "CISPO",
    "DPPO",
    "GMPO",
    "GSPO",
    "SAPO",
    "VESPO",
    "AdaptiveCoefficient",
    "Aggregation",
    "ClipCov",
    "ClippedSurrogate",
    "ClippedValueLoss",
    "ConstantLength",
    "Correction",
    "EntropyBonus",
    "KLCov",
    "KLInLoss",
    "KLInReward",
    "KLPenalty",
    "LossTerm",
    "MismatchCorrection",
    "OffPolicyMask",
    "PolicyLoss",
    "PositiveNLL",
    "PromptMean",
    "Reinforce",
    "SequenceMean",
    "TargetEntropy",
    "TeacherKL",
    "TokenLoss",
    "TokenMean",
]
