"""Finds the config key of each component, so that the component's messages name the key in full."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pydoc import locate
from typing import Any, NamedTuple, TypeVar

from jsonargparse import Namespace

from grpo_pl.system.refusal import KEY, ArgumentError

T = TypeVar("T")


class Node(NamedTuple):
    """The settings of one component."""

    key: str
    """As one writes it on the command line."""
    class_path: str | None
    """None where the type is fixed: a dataclass, a callback, the data module."""
    arguments: Mapping[str, Any]

    def may_be(self, cls: type, arguments: Mapping[str, Any]) -> bool:
        """Whether a class with these arguments can have been built from this node."""
        return (
            (self.class_path is None or locate(self.class_path) is cls)
            and self.arguments.keys() == arguments.keys()
            and not any(differ(self.arguments[name], value) for name, value in arguments.items())
        )


class Places:
    """Builds the components of a config and marks each with its key.

    jsonargparse hands over a class and its arguments, not the key. The key is that of the first node, among
    those not built yet, with this class and these arguments.
    """

    def __init__(self, config: Namespace) -> None:
        self._nodes = list(nodes(config))

    def build(self, cls: type[T], /, *args: Any, **arguments: Any) -> T:
        """Build an instance; an `ArgumentError` of the class gets the key put before it."""
        node = next((node for node in self._nodes if node.may_be(cls, arguments)), None)
        try:
            built = cls(*args, **arguments)
        except ArgumentError as error:
            error.put(node.key if node else "")
            raise
        if node:
            self._nodes.remove(node)
            with suppress(AttributeError):  # a class with __slots__ has no room for it
                object.__setattr__(built, KEY, node.key)  # a frozen dataclass refuses plain assignment
        return built


def nodes(config: Any, key: str = "") -> Iterator[Node]:
    """The parts of a config that may become components, inner ones first."""
    if isinstance(config, list | tuple):
        config = {str(i): value for i, value in enumerate(config)}
    if not isinstance(config, dict | Namespace):
        return
    settings, class_path = dict(config if isinstance(config, dict) else vars(config)), None
    if "class_path" in settings:
        class_path, inner = settings["class_path"], settings.get("init_args") or {}
        settings = dict(inner if isinstance(inner, dict) else vars(inner)) | settings.get("dict_kwargs", {})
    for name, value in settings.items():
        yield from nodes(value, f"{key}.{name}" if key else name)
    if isinstance(config, Namespace):
        yield Node(key, class_path, settings)


def differ(setting: Any, argument: Any) -> bool:
    """Whether a setting and an argument are plain values that differ."""
    plain = (str, int, float, bool, type(None))
    return isinstance(setting, plain) and isinstance(argument, plain) and setting != argument
