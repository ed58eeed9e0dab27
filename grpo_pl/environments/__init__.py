"""Environments: what answers the policy between its turns."""

from grpo_pl.environments.base import Environment
from grpo_pl.environments.tools import ToolError, Tools
from grpo_pl.types import Call, Prompt, Said, Turn

__all__ = ["Call", "Environment", "Prompt", "Said", "ToolError", "Tools", "Turn"]
