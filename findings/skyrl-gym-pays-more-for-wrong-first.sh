#!/usr/bin/env bash
# SkyRL-gym's multi-turn GSM8K pays more for wrong answers before the right one than for the right one at once.
#
# Each turn of `gsm8k_multi_turn` (skyrl-gym 0.4.0) with a wrong number after `####` pays 0.2 divided by the turns, the right number 1
# and the end: four wrong answers first bring 1.16 in all. A full stop after the right number makes it wrong. Guessed: the best
# return is that of the right answer at once.
#
# Seen with Python 3.11:
#   right at once: 1.0
#   wrong four times, then right: 1.16
#   "#### 5." where 5 is right: 0.04
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile skyrl-gym==0.4.0

cat >"$folder/look.py" <<'PYTHON'
import skyrl_gym


def paid(*said):
    game = skyrl_gym.make("gsm8k_multi_turn", extras={"reward_spec": {"ground_truth": "5"}, "max_turns": 5})
    game.init([{"role": "user", "content": "2 + 3?"}])
    return round(sum(game.step(text)["reward"] for text in said), 6)


print("right at once:", paid("#### 5"))
print("wrong four times, then right:", paid(*["#### 6"] * 4, "#### 5"))
print('"#### 5." where 5 is right:', paid("#### 5."))
PYTHON
seen=$(cd "$folder" && "$folder/venv/bin/python" look.py 2>/dev/null)
echo "$seen"
expected='right at once: 1.0
wrong four times, then right: 1.16
"#### 5." where 5 is right: 0.04'
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
