#!/usr/bin/env bash
# math-verify adds what a space separates: `\boxed{1 234}` is 235, and `\boxed{2 1/2}` is 3/2.
#
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0 takes two numbers side by side in a box for a mixed number. A thousands
# separator as much of the world writes it (1 234) becomes a sum, and of `2 1/2` the first two numbers are added: (2 + 1)/2. Only
# `2\frac{1}{2}` is 5/2. Without a box `1 234` is 1234, and `2 1/2` is 1 (as is `5 1/2`). Guessed: 1234, and 5/2 in every spelling.
#
# Seen with Python 3.11:
#   \boxed{1 234}: 235
#   \boxed{2 1/2}: 3/2
#   \boxed{2\frac{1}{2}}: 5/2
#   1 234: 1234
#   2 1/2: 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0

cat >"$folder/look.py" <<'PYTHON'
from math_verify import parse

for text in (r"\boxed{1 234}", r"\boxed{2 1/2}", r"\boxed{2\frac{1}{2}}", "1 234", "2 1/2"):
    print(f"{text}: {parse(text)[0]}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected='\boxed{1 234}: 235
\boxed{2 1/2}: 3/2
\boxed{2\frac{1}{2}}: 5/2
1 234: 1234
2 1/2: 1'
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
