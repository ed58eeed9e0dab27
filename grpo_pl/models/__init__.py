"""The models: how they are made, and what they say of given sequences."""

from grpo_pl.models.builder import ModelBuilder
from grpo_pl.models.language_model import CausalLM, LanguageModel
from grpo_pl.models.reward_model import EncodedResponse, RewardModel
from grpo_pl.models.value_model import ValueHead, ValueModel

__all__ = [
    "CausalLM",
    "EncodedResponse",
    "LanguageModel",
    "ModelBuilder",
    "RewardModel",
    "ValueHead",
    "ValueModel",
]
