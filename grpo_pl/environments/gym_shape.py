"""Environments of text in the shape of Gymnasium's or of OpenEnv's."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, final

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.environments.tools import object_at
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
        self._make, _ = maker(make, arguments, "reset", "step")

    @override
    def reset(self, prompt: Prompt, seed: int) -> Turn:
        self._played = self._make()
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


@final
class OpenEnv(Environment):
    """An environment of OpenEnv in the process of its episode, without its server: `openenv`'s `Environment`.

    The policy fills one field of the action with text, and reads one of the observation. An environment that
    offers tools (`MCPEnvironment`) is not played.

    Args:
        make: Import path of the environment's class, such as `my_env.server.Maze`.
        action: Import path of the class of its actions, such as `my_env.models.Move`.
        writes: Field of the action that what the policy says goes to.
        reads: Field of the observation that the policy is told.
        arguments: What the environment is made with, by name.
    """

    def __init__(
        self, make: str, action: str, writes: str, reads: str, arguments: dict[str, Any] | None = None
    ) -> None:
        self._action, self._writes, self._reads = object_at(action, "action"), writes, reads
        self._make, made = maker(make, arguments, "reset", "step")
        for argument, field, owner in (
            ("writes", writes, self._action),
            ("reads", reads, type(made.reset(seed=0))),
        ):
            if field not in (fields := getattr(owner, "model_fields", {})):
                raise ArgumentError(
                    f"{argument}={field}: {owner.__name__} has no such field; it has {', '.join(fields)}"
                )
            if fields[field].annotation is not str:
                raise ArgumentError(
                    f"{argument}={field}: it is no text in {owner.__name__}; choose one that is"
                )

    @override
    def reset(self, prompt: Prompt, seed: int) -> Turn:
        self._played = self._make()
        return self._turn(self._played.reset(seed=seed % 2**31))

    @override
    def step(self, said: Said) -> Turn:
        return self._turn(self._played.step(self._action(**{self._writes: said.text})))

    def _turn(self, observation: Any) -> Turn:
        told = [{"role": "user", "content": getattr(observation, self._reads)}]
        return Turn(messages=told, reward=float(observation.reward or 0), done=observation.done)

    @override
    def close(self) -> None:
        self._played.close()


def maker(make: str, arguments: dict[str, Any] | None, *methods: str) -> tuple[Callable[[], Any], Any]:
    """What makes an environment with these methods, and one that it has made, or an ArgumentError."""
    (module, _, name), arguments = make.rpartition("."), arguments or {}
    try:
        make_one = partial(getattr(import_module(module), name), **arguments)
        made = make_one()
    except Exception as error:
        raise ArgumentError(
            f"make={make}: it makes no environment of arguments={arguments} ({type(error).__name__}: {error})"
        ) from error
    if missing := [method for method in methods if not callable(getattr(made, method, None))]:
        raise ArgumentError(f"make={make}: what it makes has no method {missing[0]}")
    return make_one, made
