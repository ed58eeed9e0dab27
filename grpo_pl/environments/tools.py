"""An environment of tools: functions that the policy may call, until it answers without a call."""

import inspect
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib import import_module
from typing import Any

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.environments.schemas import mistake, tool_schema
from grpo_pl.system.refusal import ArgumentError, ConfigError, inside
from grpo_pl.types import Call, Message, Said, Turn


class ToolError(Exception):
    """Raised by a tool that has failed for no fault of the policy, such as a lost connection."""


class Tools(Environment):
    """Tools that the policy may call; an answer without a call ends the episode.

    The tools are the public methods that a subclass adds, or functions named in the config. Their schemas are
    made of signatures and docstrings. Calls of one turn run side by side, in threads; results are told in the
    order of the calls, as text, or as JSON if they are not.

    A call of a tool that does not exist, or with bad arguments, is answered with what is wrong, and so is one
    whose tool raises: the policy may do better. The episode fails where a tool raises ToolError (`error`),
    runs out of memory or exits (`crash`), or takes too long (`timeout`).

    To reward the answer, override `step`: `turn = super().step(said)` is `done` if `said` is the answer.

    Args:
        tools: Import paths of functions, such as `my_tools.add`.
    """

    _functions: tuple[Callable[..., Any], ...] = ()

    def __init__(self, tools: Sequence[str] = ()) -> None:
        self._functions = tuple(function_at(path, "tools") for path in tools)
        names = [tool.__name__ for tool in self._callables()]
        if not names:
            raise ArgumentError("tools: expected import paths of functions, such as my_tools.add")
        if len(self._schemas) < len(names):
            raise ArgumentError(f"tools: expected different names, got {', '.join(names)}")

    @property
    @override
    def tools(self) -> list[dict[str, Any]]:
        if not self._schemas:  # of a subclass that does not call the constructor here
            raise ConfigError(f"{type(self).__name__} has no tool: give it a public method", of=self)
        return list(self._schemas.values())

    @override
    def step(self, said: Said) -> Turn:
        if not said.attempts:
            return Turn(done=True)
        if len(said.calls) < 2:  # in the main thread: not every library works in another
            return Turn(messages=[*map(self._answer, said.attempts)])
        with ThreadPoolExecutor(len(said.attempts)) as threads:
            return Turn(messages=[*threads.map(self._answer, said.attempts)])

    def _answer(self, call: Call | str) -> Message:
        """The result of a call, or what is wrong with it."""
        if isinstance(call, str):
            return {"role": "tool", "content": f"Error: {call}"}
        text = self._mistake(call)
        if not text:
            [tool] = [tool for tool in self._callables() if tool.__name__ == call.name]
            try:
                result = tool(**call.arguments)
                text = (
                    result if isinstance(result, str) else json.dumps(result, default=str, ensure_ascii=False)
                )
            except (MemoryError, ToolError):
                raise
            except Exception as error:  # noqa: BLE001 - a tool may raise anything, and the policy may do better
                text = f"Error: {type(error).__name__}: {error}"
        name, content = (written.encode(errors="replace").decode() for written in (call.name, text))
        return {"role": "tool", "name": name, "content": content}

    def _mistake(self, call: Call) -> str:
        if call.name not in self._schemas:
            return f"Error: there is no tool {call.name}; there are {', '.join(self._schemas)}"
        wrong = mistake(call.arguments, self._schemas[call.name]["function"]["parameters"])
        return f"Error: {wrong}" if wrong else ""

    @cached_property
    def _schemas(self) -> dict[str, dict[str, Any]]:
        with inside("data.environment"):
            return {tool.__name__: tool_schema(tool) for tool in self._callables()}

    def _callables(self) -> list[Callable[..., Any]]:
        """The public methods that subclasses define, in that order, and the functions of the config."""
        classes = [cls for cls in reversed(type(self).__mro__) if cls not in Tools.__mro__]
        names = dict.fromkeys(name for cls in classes for name in vars(cls))
        public = [name for name in names if not name.startswith("_") and name not in dir(Tools)]
        methods = [getattr(self, name) for name in public if inspect.isroutine(getattr(type(self), name))]
        return [*methods, *self._functions]


def function_at(path: str, argument: str) -> Callable[..., Any]:
    """The function at an import path, or an ArgumentError about the argument that names it."""
    function = object_at(path, argument)
    if not inspect.isroutine(function):
        raise ArgumentError(f"{argument}: {path} is no function")
    return function


def object_at(path: str, argument: str) -> Any:
    """What an import path names, or an ArgumentError about the argument that names it."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except Exception as error:
        raise ArgumentError(
            f"{argument}: {path} cannot be imported ({type(error).__name__}: {error})"
        ) from error
