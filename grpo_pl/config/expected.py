"""Says in words what a config may write for a type."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._util import NestedArg
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR

from grpo_pl.config.allowed import NAMEABLE
from grpo_pl.config.components import implementations

PLAIN = (int, float, str, bool, type(None))
EXAMPLES = {"torch.optim.AdamW": AdamW, "torch.optim.lr_scheduler.LinearLR": LinearLR}
"""Import path -> class, for parameters that take a function of the parameters or of the optimizer."""


def all_expected(typehint: Any, got: str) -> str:
    """What a config may write for a type, in words."""
    *others, last = alternatives(typehint, got)
    return " or ".join([", ".join(others), last]) if others else last


def alternatives(typehint: Any, got: str) -> list[str]:
    """The same for each member of a union; null and the like need no mention beside several components."""
    families = [one for one in members(typehint) if not is_container(one) and len(implementations(one)) > 1]
    parts = dict.fromkeys(expected(one, got) for one in families or members(typehint))
    return list(filter(None, parts)) or ["another type"]


def is_container(typehint: Any) -> bool:
    """Whether a type is a list or a mapping."""
    origin = get_origin(typehint)
    return inspect.isclass(origin) and issubclass(origin, Iterable)


def members(typehint: Any) -> list[Any]:
    """The members of a union, its choices as one of them; any other type alone."""
    if get_origin(typehint) not in (Union, UnionType):
        return [typehint]
    choices = [value for one in get_args(typehint) if get_origin(one) is Literal for value in get_args(one)]
    others = [one for one in get_args(typehint) if get_origin(one) is not Literal]
    others.sort(
        key=lambda one: PLAIN.index(one) if one in PLAIN else -1
    )  # typing caches a union in either order
    return [Literal[tuple(choices)], *others] if choices else others


def names_instead(typehint: Any) -> list[str]:
    """The names that a misspelt one may mean."""
    single = [one for one in members(typehint) if not is_container(one)]
    choices = [str(value) for one in single if get_origin(one) is Literal for value in get_args(one)]
    return [name for one in single for name in class_names(one)] or choices


def class_names(typehint: Any) -> list[str]:
    """The short names of the classes that a type takes, inside lists and mappings as well."""
    if names := sorted(cls.__name__ for cls in implementations(typehint)):
        return names
    if inspect.isclass(typehint) and issubclass(typehint, NAMEABLE):
        return sorted(set(subclass_names(typehint)))
    if getattr(typehint, "__module__", "").startswith("grpo_pl.") and not is_dataclass(typehint):
        return [typehint.__name__]
    return sorted({name for part in get_args(typehint) for name in class_names(part)})


def subclass_names(cls: type[Any]) -> Iterator[str]:
    """The names of the imported classes of a library that a config may name where it needs this one."""
    for one in cls.__subclasses__():
        if one.__module__.partition(".")[0] == cls.__module__.partition(".")[0]:
            yield from () if inspect.isabstract(one) else (one.__name__,)
            yield from subclass_names(one)


def expected(typehint: Any, got: str) -> str | None:
    """What a config may write for a type, in words; None if it can write nothing for it."""
    names, origin = class_names(typehint), get_origin(typehint) or typehint
    example = got if got in names else names[0] if names else ""
    if origin is Literal:
        return f"one of {', '.join(map(repr, get_args(typehint)))}"
    if origin is Callable:
        path = next((path for path, cls in EXAMPLES.items() if issubclass(cls, returned(typehint))), None)
        return f"an import path such as {path}" if path else "the import path of a function"
    if not inspect.isclass(origin):
        return None
    if origin is tuple:
        return f"a list of {len(get_args(typehint))} values"
    if issubclass(origin, Mapping):
        return f"a mapping such as {{mine: {example}}}" if names else "a mapping"
    if is_container(typehint):
        return f"a list such as [{example}]" if names else "a list"
    if issubclass(origin, NAMEABLE):
        return f"{'an' if origin.__name__[0] in 'AEIOU' else 'a'} {origin.__name__} such as {example}"
    if names:
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    if is_dataclass(origin):
        return f"settings with {', '.join(parameters(origin))}"
    return {"NoneType": "null"}.get(origin.__name__, origin.__name__) if origin in PLAIN else None


def shown(value: Any) -> str:
    """A value as a config writes it; of a component its class."""
    if isinstance(value, NestedArg):
        return shown({value.key: value.val})
    if isinstance(value, dict | Namespace):
        entries = value.items() if isinstance(value, dict) else vars(value).items()
        inside = ", ".join(f"{name}: {shown(one)}" for name, one in entries)
        return str(value["class_path"]) if "class_path" in value else f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    plain = {None: "null", True: "true", False: "false", "": "''"}
    return plain[value] if isinstance(value, str | bool | None) and value in plain else str(value)


def returned(typehint: Any) -> tuple[type, ...]:
    """The classes of libraries that a function of this type returns."""
    results = get_args(typehint)[1:]
    return tuple(
        cls for one in results for cls in members(one) if inspect.isclass(cls) and issubclass(cls, NAMEABLE)
    )


def parameters(cls: Any) -> list[str]:
    """The parameters of a class's constructor, including those that it hands on."""
    return list(ArgumentParser().add_class_arguments(cls, fail_untyped=False)) if inspect.isclass(cls) else []
