"""JSON schemas of tools, from signatures and docstrings, and the check of arguments against them."""

import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from grpo_pl.system.refusal import ConfigError

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_TYPES = {"number": int | float, **{name: kind for kind, name in _NAMES.items() if kind is not float}}


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """A function as chat templates take it; ConfigError if its signature cannot be written so.

    Equal to transformers' `get_json_schema`, except that what it returns is left out, that docstrings may be
    of any style, and that they may lack.
    """
    name = function.__name__
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    described = {param.arg_name: param.description for param in doc.params}
    try:
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(f"tool {name}: its signature cannot be read ({error})") from error
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"tool {name}: it is async; write it as an ordinary function")
    properties = {}
    for key, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"tool {name}: parameter {parameter} cannot be given by its name")
        schema = _schema(hints.get(key))
        if schema is None:
            raise ConfigError(
                f"tool {name}: annotate parameter {key} with str, int, float, bool, list, dict, Literal, "
                "or a union of them"
            )
        properties[key] = schema | ({"description": text} if (text := described.get(key)) else {})
    required = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
    description = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    schema = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _schema(hint: Any) -> dict[str, Any] | None:
    """The schema of a type, None for one that JSON lacks."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is Literal and {type(value) for value in arguments} in ({str}, {int}):
        return {"type": _NAMES[type(arguments[0])], "enum": list(arguments)}
    if origin in (Union, types.UnionType):
        parts = [_schema(part) for part in arguments if part is not types.NoneType]
        if None in parts:
            return None
        nullable = {"nullable": True} if types.NoneType in arguments else {}
        return (parts[0] or {} if len(parts) == 1 else {"anyOf": parts}) | nullable
    kind = _NAMES.get(origin or hint)
    inner = _schema(arguments[-1]) if arguments else {}
    if kind is None or inner is None:
        return None
    within = {list: "items", dict: "additionalProperties"}.get(origin or hint)
    return {"type": kind} | ({within: inner} if within and inner else {})


def mistake(arguments: dict[str, Any], schema: dict[str, Any]) -> str:
    """What is wrong with the arguments of a call, empty if nothing."""
    properties = schema["properties"]
    if missing := [key for key in schema.get("required", []) if key not in arguments]:
        return f"argument {missing[0]} is missing"
    if unknown := [key for key in arguments if key not in properties]:
        return f"there is no argument {unknown[0]}; it takes {', '.join(properties) or 'none'}"
    wrong = [key for key, value in arguments.items() if not _fits(value, properties[key])]
    if not wrong:
        return ""
    expected = {k: v for k, v in properties[wrong[0]].items() if k != "description"}
    return f"argument {wrong[0]}: expected {expected}, got {arguments[wrong[0]]!r:.80}"


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    if value is None and schema.get("nullable"):
        return True
    if "anyOf" in schema:
        return any(_fits(value, part) for part in schema["anyOf"])
    if "type" not in schema:
        return True
    if isinstance(value, bool) is not (schema["type"] == "boolean"):  # a bool is an int to Python
        return False
    if not isinstance(value, _TYPES[schema["type"]]) or value not in schema.get("enum", [value]):
        return False
    items = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    inner = schema.get("items", schema.get("additionalProperties", {}))
    return all(_fits(item, inner) for item in items)
