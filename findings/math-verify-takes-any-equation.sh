#!/usr/bin/env bash
# math-verify finds 72 equal to the equation `2x = 72`.
#
# math-verify 0.9.0: where one side is an equation and the other is none, only the right side of the equation is compared, whatever
# stands on the left. That is made for `x = 72`; the unfinished `2x = 72` (x is 36), `x + y = 72` and the false `3 + 2 = 72` are right
# answers to 72 as well. Turned round, `72 = x` is wrong. Guessed: an equation is compared by its solution, or only with a lone name.
#
# Seen with Python 3.11:
#   x = 72: True
#   2x = 72: True
#   x + y = 72: True
#   3 + 2 = 72: True
#   72 = x: False
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0

cat >"$folder/look.py" <<'PYTHON'
from math_verify import parse, verify

gold = parse("$72$")
for answer in ("x = 72", "2x = 72", "x + y = 72", "3 + 2 = 72", "72 = x"):
    print(f"{answer}: {verify(gold, parse(f'${answer}$'))}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected="x = 72: True
2x = 72: True
x + y = 72: True
3 + 2 = 72: True
72 = x: False"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
