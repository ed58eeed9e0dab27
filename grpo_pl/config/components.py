"""The components that a config names by their short names: found in the folders, entered nowhere.

A module is imported if it defines a component, as its text says: others may need a library that is optional.
"""

import inspect
import pkgutil
import re
from abc import ABC
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from grpo_pl import advantages, callbacks, losses, models, prompts, reward_modeling, rewards, rollout
from grpo_pl.rollout.engine import EngineWrapper

FOLDERS = advantages, callbacks, losses, models, prompts, reward_modeling, rewards, rollout
CLASS = re.compile(r"^class (\w+)\(([^)]*)\)", re.MULTILINE)


def modules() -> Iterator[ModuleType]:
    """Every module of the folders that defines an abstract class or an implementation of one."""
    bases: dict[str, dict[str, set[str]]] = {}
    for folder in FOLDERS:
        for found in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
            spec = found.module_finder.find_spec(found.name, None)
            assert spec is not None
            text = Path(str(spec.origin)).read_text(encoding="utf-8")
            bases[found.name] = {name: set(re.findall(r"\w+", bases)) for name, bases in CLASS.findall(text)}
    components, before = {"ABC"}, 0
    while len(components) > before:
        before = len(components)
        components |= {name for own in bases.values() for name, of in own.items() if of & components}
    return (import_module(name) for name, own in bases.items() if components & own.keys())


COMPONENTS = tuple(
    cls
    for module in modules()
    for cls in vars(module).values()
    if inspect.isclass(cls) and ABC in cls.__bases__ and cls.__module__ == module.__name__
)
"""The abstract classes whose implementations a config names by their short names."""


def implementations(typehint: Any) -> set[type]:
    """The components of grpo_pl that a parameter of this type takes."""
    family = [typehint] if inspect.isclass(typehint) and issubclass(typehint, COMPONENTS) else []
    for cls in family:
        family += cls.__subclasses__()
    found = {
        cls
        for cls in family
        if cls.__module__.startswith("grpo_pl.")
        and not inspect.isabstract(cls)
        and not issubclass(cls, EngineWrapper)
    }
    return found.union(*(implementations(part) for part in get_args(typehint)))
