"""Environments of the real gymnasium, as texts."""

from typing import Any

import gymnasium
from gymnasium import spaces, wrappers

_MOVES = ["left", "down", "right", "up"]


def frozen_lake(side: int = 4) -> gymnasium.Env[str, str]:
    """The library's own game; a move that is none raises ValueError."""
    lake: Any = gymnasium.make(
        "FrozenLake-v1", desc=["SF", "HG"] if side == 2 else None, is_slippery=False, max_episode_steps=3
    )
    words = spaces.Text(100)
    lake = wrappers.TransformAction(lake, lambda text: _MOVES.index(text), words)
    return wrappers.TransformObservation(lake, lambda cell: f"You are at {cell}.", words)


class Draws(gymnasium.Env[str, str]):
    """Draws from the generator that gymnasium seeds."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return str(self.np_random.integers(1 << 30)), {}

    def step(self, action: str) -> Any:
        return action, 0, False, False, {}
