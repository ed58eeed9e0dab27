"""torchmetrics whose package face is loaded when something is asked of it.

Lightning imports the face for three names. The face imports all metrics, and those of text and pictures
import transformers, scipy and pandas.
"""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

NAME = "torchmetrics"
UTILITIES = "torchmetrics.utilities"
"""It and `torchmetrics.metric` import each other: it must be the first."""
LIGHT = {
    "__version__": ("torchmetrics.__about__",),
    "Metric": (UTILITIES, "torchmetrics.metric"),
    "MetricCollection": (UTILITIES, "torchmetrics.collections"),
}
"""What Lightning asks for -> the modules to import for it; the last one has it."""


class Face(ModuleType):
    """The package before its own code has run."""

    def __getattr__(self, name: str) -> Any:
        """Import what Lightning asks for; run the package's code for anything else."""
        if name in LIGHT:
            *_, module = map(import_module, LIGHT[name])
            return getattr(module, name)
        if name.startswith("__") and name != "__all__":  # whatever looks through all modules asks for these
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def install() -> None:
    """Have `import torchmetrics` give the package before its code has run, unless it has."""
    if NAME in sys.modules or (spec := find_spec(NAME)) is None:
        return
    module = module_from_spec(spec)
    module.__class__ = Face
    module._logger = logging.getLogger(NAME)  # type: ignore[attr-defined]  # its modules ask for it
    sys.modules[NAME] = module
