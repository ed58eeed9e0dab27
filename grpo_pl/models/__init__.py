"""The models: builders, and scores of given sequences."""

from grpo_pl.models.adapter import AdapterOff, LoRA, WithoutAdapter
from grpo_pl.models.builder import ModelBuilder
from grpo_pl.models.critic_ensemble import CriticEnsemble
from grpo_pl.models.language_model import CausalLM, LanguageModel
from grpo_pl.models.reward_model import EncodedResponse, RewardModel
from grpo_pl.models.value_model import TrunkValueHead, ValueHead, ValueModel

__all__ = [
    "AdapterOff",
    "CausalLM",
    "CriticEnsemble",
    "EncodedResponse",
    "LanguageModel",
    "LoRA",
    "ModelBuilder",
    "RewardModel",
    "TrunkValueHead",
    "ValueHead",
    "ValueModel",
    "WithoutAdapter",
]
