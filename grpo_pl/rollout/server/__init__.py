"""vLLM servers as a rollout engine: requests over HTTP, weights pushed to them.

`python -m grpo_pl.rollout.server` starts one; `ServerEngine` uses them.
"""

from grpo_pl.rollout.server.engine import ServerEngine

__all__ = ["ServerEngine"]
