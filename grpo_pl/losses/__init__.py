"""What the policy and the critic minimise, token by token, and how tokens are added up."""

from grpo_pl.losses.aggregations import Aggregation, ConstantLength, PromptMean, SequenceMean, TokenMean
from grpo_pl.losses.base import PolicyLoss, TokenLoss
from grpo_pl.losses.surrogates import CISPO, GMPO, GSPO, SAPO, ClippedSurrogate, Reinforce
from grpo_pl.losses.value import ClippedValueLoss

__all__ = [
    "CISPO",
    "GMPO",
    "GSPO",
    "SAPO",
    "Aggregation",
    "ClippedSurrogate",
    "ClippedValueLoss",
    "ConstantLength",
    "PolicyLoss",
    "PromptMean",
    "Reinforce",
    "SequenceMean",
    "TokenLoss",
    "TokenMean",
]
