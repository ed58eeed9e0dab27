#!/usr/bin/env bash
# math-verify makes a set of all the boxes of a response, if nothing else is boxed in dollars: the last box alone is not the answer.
#
# math-verify 0.9.0 joins `\boxed{3} ... \boxed{4}` to {3, 4}, which equals neither 3 nor 4, so that a solution that boxes its result
# of part 1, or that corrects itself, is wrong whatever it ends with. With dollars around each box it takes the last one. Guessed: the
# last box, as every dataset with `\boxed` is scored, or the same with and without dollars.
#
# Seen with Python 3.11:
#   First \boxed{3}. Then \boxed{4}.: {3, 4}
#   First $\boxed{3}$. Then $\boxed{4}$.: 4
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0

cat >"$folder/look.py" <<'PYTHON'
from math_verify import parse

for text in (r"First \boxed{3}. Then \boxed{4}.", r"First $\boxed{3}$. Then $\boxed{4}$."):
    print(f"{text}: {parse(text)[0]}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected='First \boxed{3}. Then \boxed{4}.: {3, 4}
First $\boxed{3}$. Then $\boxed{4}$.: 4'
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
