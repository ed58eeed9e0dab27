"""How a policy writes tool calls: a text becomes calls, or sentences about what could not be read."""

import ast
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

from typing_extensions import override

from grpo_pl.types import Call

Read = tuple[str, list[Call], list[str]]
"""A text without its calls, the calls, and a sentence for each call that could not be read."""
_UNREADABLE = (ValueError, TypeError, RecursionError, MemoryError, SyntaxError)
"""What Python's own readers raise about a text, be it however long or deep."""


class CallFormat(ABC):
    """How tools are shown to a policy and how it calls them."""

    def describe(self, tools: Sequence[dict[str, Any]]) -> str | None:  # noqa: ARG002 - for those that override
        """A text about the tools, for the system message; None where the chat template shows them itself.

        With a text, the results of tools are put as messages of the user.
        """
        return None

    @abstractmethod
    def parse(self, text: str, tools: Sequence[dict[str, Any]]) -> Read:
        """Read the calls of a turn. Nothing is run, and no text raises; `tools` know the order of arguments."""


@final
class Hermes(CallFormat):
    """JSON in a pair of tags, as Hermes, Qwen and many others: `<tool_call>{"name": ...}</tool_call>`.

    Arguments are an object under `arguments`, or a text that holds one. A call without its end is a mistake.
    """

    _CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)\s*", re.DOTALL)

    @override
    def parse(self, text: str, tools: Sequence[dict[str, Any]]) -> Read:
        calls: list[Call] = []
        mistakes: list[str] = []
        for content, end in self._CALL.findall(text):
            if end:
                _read_json(content, calls, mistakes)
            else:
                mistakes.append(f"A tool call has no </tool_call>: {_shown(content)}.")
        return self._CALL.sub("", text), calls, mistakes


@final
class Llama(CallFormat):
    """A turn of JSON alone, as Llama 3: `{"name": ..., "parameters": {...}}`, several joined by `;`.

    `<|python_tag|>` may stand before it, and makes a mistake of all else.
    """

    _TAG = "<|python_tag|>"
    _BEGIN = re.compile(r'\{\s*"(?:name|type|function|parameters)"')

    @override
    def parse(self, text: str, tools: Sequence[dict[str, Any]]) -> Read:
        said, tag, written = text.partition(self._TAG)
        if not tag:
            said, written = "", text.strip()
            if not self._BEGIN.match(written):
                return text, [], []
        calls: list[Call] = []
        mistakes: list[str] = []
        decoder = json.JSONDecoder()
        written = written.strip()
        while written and not mistakes:
            try:
                _, end = decoder.raw_decode(written)
            except _UNREADABLE:
                end = len(written)
            _read_json(written[:end], calls, mistakes)
            written = written[end:].lstrip("; \n\t,")
        return said, calls, mistakes


@final
class Tag(CallFormat):
    """A call as in Python in a pair of tags, plain text, for small models: `<call>add(a=2, b=3)</call>`.

    Arguments are literals, by name or by place. The system message describes the tools, and the user's messages
    give the results: so it works with every chat template that has turns.
    """

    _CALL = re.compile(r"<call>(.*?)(</call>|(?=<call>)|\Z)\s*", re.DOTALL)

    @override
    def describe(self, tools: Sequence[dict[str, Any]]) -> str | None:
        named = [(tool["function"], _parameters(tool["function"])) for tool in tools]
        function, first = named[0]
        example = f"{function['name']}({', '.join(f'{name}=...' for name in first)})"
        lines = [
            f"{function['name']}({', '.join(f'{name}: {kind}' for name, kind in parameters.items())})"
            f": {function.get('description', '')}".rstrip(": ")
            for function, parameters in named
        ]
        return "\n".join([f"Call a tool by writing <call>{example}</call>. The tools are:", *lines])

    @override
    def parse(self, text: str, tools: Sequence[dict[str, Any]]) -> Read:
        order = {tool["function"]["name"]: list(_parameters(tool["function"])) for tool in tools}
        calls: list[Call] = []
        mistakes: list[str] = []
        for content, end in self._CALL.findall(text):
            if not end:
                mistakes.append(f"A tool call has no </call>: {_shown(content)}.")
                continue
            try:
                calls.append(_python_call(content.strip(), order))
            except _UNREADABLE as error:
                reason = str(error) if type(error) is ValueError else "it is no call such as add(a=2, b=3)"
                mistakes.append(f"A tool call cannot be read, for {reason}: {_shown(content)}.")
        return self._CALL.sub("", text), calls, mistakes


def _parameters(function: dict[str, Any]) -> dict[str, str]:
    """The names of a tool's parameters and their types, in order."""
    properties = (function.get("parameters") or {}).get("properties") or {}
    return {name: str(schema.get("type", "any")) for name, schema in properties.items()}


def _python_call(text: str, order: dict[str, list[str]]) -> Call:
    tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise SyntaxError
    name, names = tree.func.id, order.get(tree.func.id, [])
    if tree.args and name in order and len(tree.args) > len(names):
        raise ValueError(f"{name} takes {len(names)} arguments and {len(tree.args)} are given")
    pairs = [*zip(names, tree.args, strict=False), *((keyword.arg, keyword.value) for keyword in tree.keywords)]
    given = [key for key, _ in pairs]
    if twice := {key for key in given if given.count(key) > 1}:
        raise ValueError(f"the argument {sorted(map(str, twice))[0]} is given twice")
    arguments = {str(key): _literal(node) for key, node in pairs if key is not None}
    if None in given:
        raise SyntaxError
    return Call(name=name, arguments=arguments)


def _literal(node: ast.expr) -> Any:
    """A value that JSON can hold: text, number, truth, nothing, list, dictionary."""
    try:
        return json.loads(json.dumps(ast.literal_eval(node), allow_nan=False))
    except _UNREADABLE as error:
        raise ValueError("an argument is no literal such as 2, 'text' or [1, 2]") from error


def _read_json(text: str, calls: list[Call], mistakes: list[str]) -> None:
    """Add the calls that a JSON text holds, one or a list, or what is wrong with it."""
    try:
        found = json.loads(text)
        calls += [_json_call(call) for call in (found if isinstance(found, list) else [found])]
    except _UNREADABLE as error:
        reason = str(error) if type(error) is ValueError else "it is no JSON"
        mistakes.append(f"A tool call cannot be read, for {reason}: {_shown(text)}.")


def _json_call(call: Any) -> Call:
    call = call.get("function", call) if isinstance(call, dict) and "name" not in call else call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise ValueError('it has no "name"')
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except _UNREADABLE:
            arguments = None
    if not isinstance(arguments, dict):
        raise ValueError("its arguments are no JSON object")
    return Call(name=call["name"], arguments=arguments)


def _shown(text: str) -> str:
    """A text in a sentence, cut where it is long."""
    return repr(text.strip()[:100])
