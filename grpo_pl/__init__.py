"""grpo_pl: reinforcement learning on language models, with every part swappable."""

__version__ = "0.1.0"
