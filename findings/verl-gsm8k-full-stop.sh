#!/usr/bin/env bash
# verl's GSM8K reward, "flexible", pays nothing for "The answer is 72." and everything for "The answer is 72".
#
# verl 0.9.1 takes the last run of digits, commas, points and hyphens, so that the full stop of the sentence belongs to the number,
# and compares strings: "72." is not "72". Nor are "1,080" and "1080", since it removes no commas here, as it does in "strict"; and
# "strict" fails on the full stop as well. Guessed: "flexible" is the laxer one, and a sentence may end.
#
# Seen with Python 3.11 (flexible, strict):
#   The answer is 72: 1.0 0
#   The answer is 72.: 0.0 0
#   #### 72: 1.0 1.0
#   #### 72.: 0.0 0.0
#   #### 1,080: 0.0 1.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps verl==0.9.1

cat >"$folder/look.py" <<'PYTHON'
import runpy
import sys
from pathlib import Path

file = next(Path(sys.prefix).glob("lib/python*/site-packages/verl/utils/reward_score/gsm8k.py"))
score = runpy.run_path(str(file))["compute_score"]  # the file imports nothing of the rest of verl
for text in ("The answer is 72", "The answer is 72.", "#### 72", "#### 72.", "#### 1,080"):
    gold = "1080" if "1,080" in text else "72"
    print(f"{text}:", score(text, gold, "flexible"), score(text, gold, "strict"))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py")
echo "$seen"
expected="The answer is 72: 1.0 0
The answer is 72.: 0.0 0
#### 72: 1.0 1.0
#### 72.: 0.0 0.0
#### 1,080: 0.0 1.0"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
