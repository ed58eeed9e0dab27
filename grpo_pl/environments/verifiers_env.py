"""Environments of the verifiers library, of releases before 0.4."""

import asyncio
import json
import logging
import signal
from typing import Any, final

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.environments.gym_shape import maker
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Said, Turn


@final
class Verifiers(Environment):
    """An environment of the verifiers library (seen with 0.1.10 and 0.3.1): a `MultiTurnEnv`, or a `ToolEnv`.

    An episode is a rollout of the library's own, in which the policy answers instead of a model behind a URL.
    It plays the row of the environment's own data set that the seed chooses (the prompt of `data.train` is
    not read), and pays at its end what the rubric says. Deviation: where a function of the rubric raises, the
    episode fails; the library pays 0.

    Args:
        make: Import path of what makes it, such as `my_hub_env.load_environment`, or a class.
        arguments: What that is called with, by name.
    """

    def __init__(self, make: str, arguments: dict[str, Any] | None = None) -> None:
        try:
            from verifiers import JudgeRubric, MultiTurnEnv, types
        except ImportError as error:
            raise ImportError(
                "Verifiers needs the package `verifiers`, before 0.4: pip install 'grpo_pl[verifiers]'"
            ) from error
        handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            _, self._played = maker(make, arguments, "rollout")
        finally:
            for number, handler in handlers:  # the library has taken both signals for its environment
                signal.signal(number, handler)
        rubrics = getattr(self._played.rubric, "rubrics", [self._played.rubric])
        for wrong, what in (
            (not isinstance(self._played, MultiTurnEnv), "is no MultiTurnEnv"),
            (any(isinstance(rubric, JudgeRubric) for rubric in rubrics), "asks a judge behind a URL"),
            (any(r._is_group_func(f) for r in rubrics for f in r.funcs), "rewards whole groups"),
        ):
            if wrong:
                raise ArgumentError(f"make={make}: {type(self._played).__name__} {what}; choose another one")
        for rubric in rubrics:
            rubric.logger.addFilter(_raise)
        self._source, self._types = (make, arguments), types

    def __reduce__(self) -> tuple[Any, ...]:
        return Verifiers, self._source  # made anew in the process that is forked for the episodes

    @property
    @override
    def tools(self) -> list[dict[str, Any]]:
        tools = getattr(self._played, "tool_defs", None) or getattr(self._played, "oai_tools", None) or []
        keys = "name", "description", "parameters"
        functions = [tool.get("function", tool) for tool in tools]
        return [{"type": "function", "function": {key: tool[key] for key in keys}} for tool in functions]

    @override
    def reset(self, prompt: Prompt, seed: int) -> Turn:
        self._loop, self._told = asyncio.new_event_loop(), list[Any]()
        self._played.get_model_response = self._respond
        rows, client = self._played.get_dataset(), self._types.ClientConfig()
        rollout = self._played.run_rollout(rows[seed % len(rows)], client, "policy", {})
        self._rollout = self._loop.create_task(rollout)
        return self._turn()

    @override
    def step(self, said: Said) -> Turn:
        if not said.attempts or said.calls:
            self._answer.set_result(self._response(said))
            turn = self._turn()
        else:
            turn = Turn()
        for place, unread in enumerate(said.attempts):
            if isinstance(unread, str) and not turn.done:
                turn.messages.insert(place, {"role": "tool", "content": f"Error: {unread}"})
        return turn

    async def _respond(self, _: Any, prompt: list[Any], *__: Any, **___: Any) -> Any:
        """What the library calls to ask its model: the whole conversation, to be answered."""
        self._answer = self._loop.create_future()
        self._question.set_result([{key: each[key] for key in ("role", "content")} for each in prompt])
        return await self._answer

    def _turn(self) -> Turn:
        """Let the rollout go on until it asks or ends."""
        self._question = self._loop.create_future()
        both = asyncio.wait({self._question, self._rollout}, return_when=asyncio.FIRST_COMPLETED)
        self._loop.run_until_complete(both)
        if self._rollout.done():
            output = self._rollout.result()
            if output.get("error"):
                raise RuntimeError(output["error"])
            return Turn(reward=float(output["reward"]), done=True)
        told, self._told = self._told, self._question.result()
        if self._told[: len(told)] != told:
            raise RuntimeError("it changes what was said before")
        return Turn(messages=self._told[len(told) + bool(told) :])  # one of them is what the policy said

    def _response(self, said: Said) -> Any:
        """What the policy has said, as the library takes it from its model."""
        head = {"id": "", "created": 0, "model": "policy"}
        flat = [
            {"id": f"call_{i}", "name": call.name, "arguments": json.dumps(call.arguments)}
            for i, call in enumerate(said.calls)
        ]
        message = {
            "role": "assistant",
            "content": said.text if flat else said.raw,
            "tool_calls": flat or None,
        }
        if "Response" in vars(self._types):
            ended = {"finish_reason": "stop", "is_truncated": False}
            return self._types.Response.model_validate(head | {"message": message | ended})
        nested = [{"id": call.pop("id"), "type": "function", "function": call} for call in flat]
        choice = {"index": 0, "finish_reason": "stop", "message": message | {"tool_calls": nested or None}}
        chat = head | {"object": "chat.completion", "choices": [choice]}
        return self._types.ChatCompletion.model_validate(chat)


def _raise(record: logging.LogRecord) -> bool:
    """Raise what a rubric logs about a function that raised, for which the library pays 0."""
    if record.levelno >= logging.ERROR:
        raise RuntimeError(record.getMessage())
    return True
