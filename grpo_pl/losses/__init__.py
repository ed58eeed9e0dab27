"""Losses of the policy and the critic, token by token, and their aggregation."""

from grpo_pl.losses.aggregations import Aggregation, ConstantLength, PromptMean, SequenceMean, TokenMean
from grpo_pl.losses.base import LossTerm, PolicyLoss
from grpo_pl.losses.entropy import EntropyBonus
from grpo_pl.losses.kl import AdaptiveCoefficient, KLInLoss, KLInReward, KLPenalty
from grpo_pl.losses.surrogates import CISPO, GMPO, GSPO, SAPO, ClippedSurrogate, Reinforce
from grpo_pl.losses.value import ClippedValueLoss
from grpo_pl.types import TokenLoss

__all__ = [
    "CISPO",
    "GMPO",
    "GSPO",
    "SAPO",
    "AdaptiveCoefficient",
    "Aggregation",
    "ClippedSurrogate",
    "ClippedValueLoss",
    "ConstantLength",
    "EntropyBonus",
    "KLInLoss",
    "KLInReward",
    "KLPenalty",
    "LossTerm",
    "PolicyLoss",
    "PromptMean",
    "Reinforce",
    "SequenceMean",
    "TokenLoss",
    "TokenMean",
]
