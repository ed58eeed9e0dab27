#!/usr/bin/env bash
# A module with a method `-> Self` cannot be imported under jaxtyping's import hook with beartype.
#
# The hook of jaxtyping 0.3.11 decorates each method by itself, and beartype 0.23.1 accepts typing.Self only where it decorates
# the whole class, so that the import ends in an error: code that mypy and Python accept breaks when shapes are checked. A type
# variable bound to the class works. Guessed: an annotation that the standard library defines is checked or passed over.
#
# Seen with Python 3.11:
#   Self: BeartypeDecorHintPep673Exception
#   bound type variable: imported
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jaxtyping==0.3.11 beartype==0.23.1

cat >"$folder/with_self.py" <<'PYTHON'
from typing import Self


class Batch:
    def part(self) -> Self:
        return self
PYTHON
cat >"$folder/with_variable.py" <<'PYTHON'
from typing import TypeVar

B = TypeVar("B", bound="Batch")


class Batch:
    def part(self: B) -> B:
        return self
PYTHON
cat >"$folder/look.py" <<'PYTHON'
from importlib import import_module

from jaxtyping import install_import_hook

for name, module in {"Self": "with_self", "bound type variable": "with_variable"}.items():
    try:
        with install_import_hook(module, "beartype.beartype"):
            import_module(module).Batch().part()
        print(f"{name}: imported")
    except Exception as error:
        print(f"{name}: {type(error).__name__}")
PYTHON
seen=$(cd "$folder" && "$folder/venv/bin/python" look.py 2>/dev/null)
echo "$seen"
expected="Self: BeartypeDecorHintPep673Exception
bound type variable: imported"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
