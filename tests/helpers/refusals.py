"""What the tables of wrong input share."""

from collections.abc import Iterable
from typing import Any

import pytest


def cases(table: Iterable[str], *by_default: str) -> list[Any]:
    """The names in a table; those that are not named here as well take part only where slow tests do."""
    return [
        name if name in by_default else pytest.param(name, marks=pytest.mark.slow, id=name) for name in table
    ]
