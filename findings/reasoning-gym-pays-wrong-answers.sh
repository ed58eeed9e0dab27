#!/usr/bin/env bash
# Verifiers of reasoning-gym pay wrong answers in full, and half for a right number with another number of decimals.
#
# reasoning-gym 0.1.25 compares bool("True") with bool("False") in game_of_life_halting; counts, but does not compare, the numbers
# that puzzle24 gives; takes min(1, exp(-|nan - x|)), which is 1, in complex_arithmetic; allows each number of number_sorting to be
# wrong by 1; and by default pays len(gold)/len(answer) wherever the gold answer stands in the answer. A policy that is trained
# on these scores learns it. Guessed: a score of 1 means that the answer is right.
#
# Seen with Python 3.11 (task, gold answer, answer, score):
#   game_of_life_halting: True for False: 1.0
#   puzzle24: 6*4*1*1 for 5, 6, 1, 6: 1.0
#   complex_arithmetic: nan for -2.0 - 4.0i: 1.0
#   number_sorting: all numbers wrong by 0.9: 1.0
#   basic_arithmetic: the right 9.0 for 9: 0.3333333333333333
#   basic_arithmetic: the wrong 99 for 9: 0.5
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile reasoning-gym==0.1.25

cat >"$folder/look.py" <<'PYTHON'
import json

import reasoning_gym


def first(task, wanted=lambda entry: True, **config):
    """A task and its first row that is wanted."""
    dataset = reasoning_gym.create_dataset(task, size=1000, seed=3, **config)
    return dataset, next(entry for entry in dataset if wanted(entry))


task, entry = first("game_of_life_halting", lambda entry: entry["answer"] == "False")
print(f"game_of_life_halting: True for {entry['answer']}:", task.score_answer("True", entry))
task, entry = first("puzzle24", lambda entry: sorted(entry["metadata"]["numbers"]) == [1, 5, 6, 6])
print("puzzle24: 6*4*1*1 for 5, 6, 1, 6:", task.score_answer("6*4*1*1", entry))
task, entry = first("complex_arithmetic", lambda entry: entry["answer"] == "-2.0 - 4.0i")
print(f"complex_arithmetic: nan for {entry['answer']}:", task.score_answer("nan", entry))
task, entry = first("number_sorting")
wrong = [float(number) + 0.9 for number in entry["metadata"]["sorted_numbers"]]
print("number_sorting: all numbers wrong by 0.9:", task.score_answer(json.dumps(wrong), entry))
task, entry = first("basic_arithmetic", lambda entry: entry["answer"] == "9")
print("basic_arithmetic: the right 9.0 for 9:", task.score_answer("9.0", entry))
print("basic_arithmetic: the wrong 99 for 9:", task.score_answer("99", entry))
PYTHON
seen=$(cd "$folder" && "$folder/venv/bin/python" look.py 2>/dev/null)
echo "$seen"
expected="game_of_life_halting: True for False: 1.0
puzzle24: 6*4*1*1 for 5, 6, 1, 6: 1.0
complex_arithmetic: nan for -2.0 - 4.0i: 1.0
number_sorting: all numbers wrong by 0.9: 1.0
basic_arithmetic: the right 9.0 for 9: 0.3333333333333333
basic_arithmetic: the wrong 99 for 9: 0.5"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
