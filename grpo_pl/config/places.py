"""Finds the config key of each component, so that the component's messages name the key in full."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pydoc import locate
from typing import Any, NamedTuple, TypeVar

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from grpo_pl.system.refusal import KEY, ArgumentError, ConfigError

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

    What a component cannot be built from is the user's mistake if it is refused by one of our ConfigErrors,
    by another library, or by any error of a class that is not ours. Any other error is a bug of ours.

    jsonargparse hands over a class and its arguments, not the key. The key is that of the first node, among
    those not built yet, with this class and these arguments.
    """

    def __init__(self, config: Namespace) -> None:
        self._nodes = list(nodes(config))

    def build(self, cls: type[T], /, *args: Any, **arguments: Any) -> T:
        """Build an instance; what refuses its arguments gets the key put before it."""
        node = next((node for node in self._nodes if node.may_be(cls, arguments)), None)
        try:
            built = cls(*args, **arguments)
        except ArgumentError as error:
            error.put(node.key if node else "")
            raise
        except ConfigError:
            raise
        except Exception as error:
            if is_ours(cls.__module__) and not is_refusal_by_a_library(error):
                raise BugError from error
            raise refusal(cls, node.key if node else "", error) from error
        if node:
            self._nodes.remove(node)
            with suppress(AttributeError):  # a class with __slots__ has no room for it
                object.__setattr__(built, KEY, node.key)  # a frozen dataclass refuses plain assignment
        return built


class BugError(BaseException):
    """Carries, as its cause, a bug of ours past jsonargparse, which reads most errors as user's mistakes."""


def is_ours(module: str) -> bool:
    """Whether a module belongs to grpo_pl."""
    return module.partition(".")[0] == "grpo_pl"


def is_refusal_by_a_library(error: Exception) -> bool:
    """Whether code outside of grpo_pl has refused a value that we have passed on, or is missing."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__"))
    called = frame.f_code is Places.build.__code__  # arguments that the class does not take
    refusals = TypeError, ValueError, MisconfigurationException
    refused = isinstance(error, refusals) and (called or not is_ours(raised_in))
    return refused or isinstance(error, ImportError)


def refusal(cls: type, key: str, error: Exception) -> ConfigError:
    """The sentence on an error of a constructor; if it may be a bug, with the class and the kind."""
    text = str(error)
    if not isinstance(error, ValueError | TypeError | MisconfigurationException) or not text:
        text = f"{cls.__module__}.{cls.__qualname__} failed with {type(error).__name__}: {error}"
        text += " (GRPO_PL_TRACEBACK=1 shows where)"
    return ConfigError(f"{key}: {text}" if key else text)


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
