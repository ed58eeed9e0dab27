"""How a policy writes tool calls: a text becomes calls, or sentences about what could not be read."""

import ast
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

from typing_extensions import override

from grpo_pl.types import Call

Read = tuple[str, list[Call | str]]
"""A text without its calls, and these in their order, a sentence in the place of one that could not be read.
"""
_UNREADABLE = (ValueError, TypeError, RecursionError, MemoryError, SyntaxError)
"""What Python's own readers raise about a text, be it however long or deep."""
_DEEPEST = 100
"""The most levels of the arguments of a call: deeper ones could be read, but not passed on."""


class CallFormat(ABC):
    """How tools are shown to a policy and how it calls them."""

    def describe(self, tools: Sequence[dict[str, Any]]) -> str | None:  # noqa: ARG002 - for those that override
        """A text about the tools, for the system message; None where the chat template shows them itself.

        With a text, the results of tools are put as messages of the user.
        """
        return None

    @abstractmethod
    def parse(self, text: str, tools: Sequence[dict[str, Any]]) -> Read:
        """Read the calls of a turn. Nothing is run, and no text raises; `tools` order the arguments."""


@final
class Hermes(CallFormat):
    """JSON in a pair of tags, as Hermes, Qwen and many others: `<tool_call>{"name": ...}</tool_call>`.

    Arguments are an object under `arguments`, or a text that holds one. A call without its end is a mistake.
    """

    @override
    def parse(self, text: str, tools: Sequence[dict[str, Any]]) -> Read:
        return _in_tags("tool_call", text, _json_calls)


@final
class Llama(CallFormat):
    """A turn of JSON alone, as Llama 3: `{"name": ..., "parameters": {...}}`, several joined by `;`.

    `<|python_tag|>` may stand before it, and makes a mistake of all else.
    """

    _BEGIN = re.compile(r'.*<\|python_tag\|>|\s*(?=\{\s*"(?:name|type|function|parameters)")', re.DOTALL)

    @override
    def parse(self, text: str, tools: Sequence[dict[str, Any]]) -> Read:
        attempts: list[Call | str] = []
        begin = self._BEGIN.match(text)
        if not begin:
            return text, attempts
        written = text[begin.end() :].strip()
        while written and str not in map(type, attempts):
            try:
                end = json.JSONDecoder().raw_decode(written)[1]
            except _UNREADABLE:
                end = len(written)
            attempts += _read(written[:end], _json_calls)
            written = written[end:].lstrip("; \n\t,")
        return begin[0].removesuffix("<|python_tag|>"), attempts


@final
class Tag(CallFormat):
    """A call as in Python in a pair of tags, plain text, for small models: `<call>add(a=2, b=3)</call>`.

    Arguments are literals, by name or by place. The system message describes the tools, and messages of the
    user give the results, so that every chat template with turns will do.
    """

    @override
    def describe(self, tools: Sequence[dict[str, Any]]) -> str | None:
        lines = []
        for function in (tool["function"] for tool in tools):
            parameters = ", ".join(f"{name}: {kind}" for name, kind in _parameters(function).items())
            lines.append(f"{function['name']}({parameters}): {function.get('description', '')}".rstrip(": "))
        first = tools[0]["function"]
        example = f"{first['name']}({', '.join(f'{name}=...' for name in _parameters(first))})"
        return "\n".join([f"Call a tool by writing <call>{example}</call>. The tools are:", *lines])

    @override
    def parse(self, text: str, tools: Sequence[dict[str, Any]]) -> Read:
        order = {tool["function"]["name"]: list(_parameters(tool["function"])) for tool in tools}
        return _in_tags("call", text, lambda written: [_python_call(written.strip(), order)])


def _in_tags(tag: str, text: str, read: Callable[[str], list[Call]]) -> Read:
    pattern = re.compile(rf"<{tag}>(.*?)(</{tag}>|(?=<{tag}>)|\Z)\s*", re.DOTALL)
    attempts: list[Call | str] = []
    for written, end in pattern.findall(text):
        attempts += _read(written, read) if end else [f"A tool call has no </{tag}>: {_shown(written)}."]
    return pattern.sub("", text), attempts


def _read(text: str, read: Callable[[str], list[Call]]) -> Sequence[Call | str]:
    """The calls that a text holds, or what is wrong with it."""
    try:
        found = read(text)
        if any(_depth(call.arguments) > _DEEPEST for call in found):
            raise ValueError(f"its arguments have more than {_DEEPEST} levels")
        return found
    except _UNREADABLE as error:
        reason = str(error) if type(error) is ValueError else "it is not well formed"
        return [f"A tool call could not be read, {reason}: {_shown(text)}."]


def _depth(value: Any) -> int:
    """How many lists and dictionaries stand in each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _shown(text: str) -> str:
    """A text in a sentence, cut where it is long."""
    return repr(text.strip()[:100])


def _json_calls(text: str) -> list[Call]:
    """One call, or a list of them."""
    found = json.loads(text)
    return [_json_call(call) for call in (found if isinstance(found, list) else [found])]


def _json_call(call: Any) -> Call:
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise ValueError('it has no "name"')
    arguments = call.get("arguments", call.get("parameters", {}))
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict):
        raise ValueError("its arguments are no JSON object")
    return Call(name=call["name"], arguments=arguments)


def _parameters(function: dict[str, Any]) -> dict[str, str]:
    """The names of a tool's parameters and their types, in order."""
    properties = (function.get("parameters") or {}).get("properties") or {}
    return {name: str(schema.get("type", "any")) for name, schema in properties.items()}


def _python_call(text: str, order: dict[str, list[str]]) -> Call:
    tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError("it is no call such as add(a=2, b=3)")
    name = tree.func.id
    names = order.get(name, [str(place) for place in range(len(tree.args))])
    if len(tree.args) > len(names):
        raise ValueError(f"{name} takes {len(names)} arguments and gets {len(tree.args)}")
    arguments: dict[str, Any] = {}
    for key, node in [
        *zip(names, tree.args, strict=False),
        *((word.arg, word.value) for word in tree.keywords),
    ]:
        if key is None or key in arguments:
            raise ValueError("an argument has no name or is given twice")
        arguments[key] = _literal(node)
    return Call(name=name, arguments=arguments)


def _literal(node: ast.expr) -> Any:
    """A value that JSON can hold: text, number, truth, nothing, list, dictionary."""
    try:
        return json.loads(json.dumps(ast.literal_eval(node), allow_nan=False))
    except _UNREADABLE as error:
        raise ValueError("an argument is no literal such as 2, 'text' or [1, 2]") from error
