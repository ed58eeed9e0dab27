"""vLLM servers as a rollout engine: asked over HTTP, their weights pushed to them.

`python -m grpo_pl.rollout.server` starts one; `ServerEngine` asks them.
"""

from grpo_pl.rollout.server.engine import ServerEngine

__all__ = ["ServerEngine"]
