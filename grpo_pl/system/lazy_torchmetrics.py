"""Loads torchmetrics' `__init__` only when it is needed.

Lightning imports three names from it. It imports all metrics, and those of text and images import
transformers, scipy and pandas.
"""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

NAME = "torchmetrics"
UTILITIES = "torchmetrics.utilities"
"""It and `torchmetrics.metric` import each other: it must come first."""
LIGHT = {
    "__version__": ("torchmetrics.__about__",),
    "Metric": (UTILITIES, "torchmetrics.metric"),
    "MetricCollection": (UTILITIES, "torchmetrics.collections"),
}
"""Names that Lightning needs -> the modules to import; the last one has the name."""


class Face(ModuleType):
    """The package before its own code has run."""

    def __getattr__(self, name: str) -> Any:
        """Import the names that Lightning needs; run the package's code for any other."""
        if name in LIGHT:
            *_, module = map(import_module, LIGHT[name])
            return getattr(module, name)
        if name.startswith("__") and name != "__all__":  # looked up by code that inspects all modules
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def install() -> None:
    """Have `import torchmetrics` give the package without running its code, unless it has run."""
    if NAME in sys.modules or (spec := find_spec(NAME)) is None:
        return
    module = module_from_spec(spec)
    module.__class__ = Face
    module._logger = logging.getLogger(NAME)  # type: ignore[attr-defined]  # its modules ask for it
    sys.modules[NAME] = module
