"""Environments of text that have the shape of Gymnasium's."""

from importlib import import_module
from typing import Any, final

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Said, Turn


@final
class Gymnasium(Environment):
    """An environment with the methods of Gymnasium's, whose observations and actions are texts.

    These are `reset(seed=...) -> (text, info)` and
    `step(text) -> (text, reward, terminated, truncated, info)`, as in gymnasium and gem. Their spaces are not
    read. The object is made in the process of its episode; the module of `make` is imported before.

    Args:
        make: Import path of the class or function that makes it, such as `gem.make` or `my_games.Maze`.
        arguments: What that is called with, by name, such as `{env_id: "game:Sudoku-v0-easy"}`.
    """

    def __init__(self, make: str, arguments: dict[str, Any] | None = None) -> None:
        module, _, name = make.rpartition(".")
        self._arguments = arguments or {}
        try:
            self._make = getattr(import_module(module), name)
            made = self._make(**self._arguments)
        except Exception as error:
            raise ArgumentError(
                f"make={make}: it makes no environment of arguments={self._arguments} "
                f"({type(error).__name__}: {error})"
            ) from error
        if missing := [method for method in ("reset", "step") if not callable(getattr(made, method, None))]:
            raise ArgumentError(f"make={make}: what it makes has no method {missing[0]}")

    @override
    def reset(self, prompt: Prompt, seed: int) -> Turn:
        self._played = self._make(**self._arguments)
        text, _ = self._played.reset(seed=seed % 2**31)  # as far as seeds of NumPy and of gem reach
        return Turn(messages=[{"role": "user", "content": text}])

    @override
    def step(self, said: Said) -> Turn:
        text, reward, terminated, truncated, _ = self._played.step(said.text)
        return Turn(
            messages=[{"role": "user", "content": text}],
            reward=float(reward),
            done=bool(terminated or truncated),
        )

    @override
    def close(self) -> None:
        if close := getattr(self._played, "close", None):
            close()
