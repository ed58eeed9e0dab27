#!/usr/bin/env bash
# A test of Hypothesis with `derandomize=True` sees other examples when another local module has been imported before.
#
# Hypothesis draws strings and numbers also from the constants in the source of the modules that are imported,
# those of the project itself. Which these are when a test begins, earlier tests decide: alone, in another order, or on
# another worker of pytest-xdist the "always the same" examples of `derandomize` are others, and a fault shows in one run
# of three. Guessed: what is derandomized depends on the test alone.
#
# Seen with hypothesis 6.170.15: the examples of one derandomized test
#   alone, twice the same: True
#   the same after an import: False
#   a constant of the imported module among them: True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet hypothesis==6.170.15

mkdir "$folder/project"
cat >"$folder/project/unrelated.py" <<'PYTHON'
NAMES = ["zebra crossing", "quince marmalade", "\u2028 between", "seven league boots"]
PYTHON
cat >"$folder/project/look.py" <<'PYTHON'
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

if "import" in sys.argv:
    import unrelated  # noqa: F401
seen = []


@settings(max_examples=300, derandomize=True, database=None)
@given(st.text())
def test(text):
    seen.append(text)


test()
print(ascii(seen))
PYTHON
cd "$folder/project"
alone=$("$folder/venv/bin/python" look.py)
again=$("$folder/venv/bin/python" look.py)
after=$("$folder/venv/bin/python" look.py import)
truth() { "$@" && echo True || echo False; }
seen="alone, twice the same: $(truth test "$alone" = "$again")
the same after an import: $(truth test "$alone" = "$after")
a constant of the imported module among them: $(truth grep -q "quince marmalade\|zebra crossing\|seven league" <<<"$after")"
echo "$seen"
expected="alone, twice the same: True
the same after an import: False
a constant of the imported module among them: True"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
