"""Credit assignment: rewards of responses -> advantages of tokens."""

from grpo_pl.advantages.base import AdvantageEstimator
from grpo_pl.advantages.baselines import OPO, ReinforcePlusPlus, ReinforcePlusPlusBaseline, ReMax
from grpo_pl.advantages.critic import GAE
from grpo_pl.advantages.distillation import Distillation
from grpo_pl.advantages.group import GDPO, GroupRelative, LeaveOneOut, PassAtK, WinRate
from grpo_pl.advantages.imitation import DirectPreference, Imitation
from grpo_pl.advantages.maximum_likelihood import MaxRL
from grpo_pl.advantages.process import ProcessGroupRelative
from grpo_pl.types import Credit

__all__ = [
    "GAE",
    "GDPO",
    "OPO",
    "AdvantageEstimator",
    "Credit",
    "DirectPreference",
    "Distillation",
    "GroupRelative",
    "Imitation",
    "LeaveOneOut",
    "MaxRL",
    "PassAtK",
    "ProcessGroupRelative",
    "ReMax",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "WinRate",
]
