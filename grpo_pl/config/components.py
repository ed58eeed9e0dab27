"""The components that a config names by their short names; found in the folders, registered nowhere.

A module is imported only if its text defines a component: others may need an optional library.
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

from grpo_pl import (
    advantages,
    callbacks,
    environments,
    losses,
    models,
    prompts,
    reward_modeling,
    rewards,
    rollout,
)
from grpo_pl.rollout.wrapper import EngineWrapper

FOLDERS = advantages, callbacks, environments, losses, models, prompts, reward_modeling, rewards, rollout
CLASS = re.compile(r"^class (\w+)\(([^)]*)\)", re.MULTILINE)


def modules() -> Iterator[ModuleType]:
    """Every module of the folders that defines an abstract class or an implementation of one."""
    defined: dict[str, dict[str, set[str]]] = {}  # module -> its classes and their bases
    for folder in FOLDERS:
        for module in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
            spec = module.module_finder.find_spec(module.name, None)
            assert spec is not None
            classes = CLASS.findall(Path(str(spec.origin)).read_text(encoding="utf-8"))
            defined[module.name] = {name: set(re.findall(r"\w+", bases)) for name, bases in classes}
    components, before = {"ABC"}, 0
    while len(components) > before:
        before = len(components)
        components |= {
            name for classes in defined.values() for name, bases in classes.items() if bases & components
        }
    return (import_module(name) for name, classes in defined.items() if components & classes.keys())


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
    concrete = {
        cls
        for cls in family
        if cls.__module__.startswith("grpo_pl.")
        and not inspect.isabstract(cls)
        and not issubclass(cls, EngineWrapper)
    }
    return concrete.union(*(implementations(part) for part in get_args(typehint)))
