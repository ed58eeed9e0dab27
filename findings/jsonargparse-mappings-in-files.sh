#!/usr/bin/env bash
# In a mapping of classes an option adds an entry and a later config file removes all others; in a class the same file merges.
#
# jsonargparse 4.53.0, under LightningCLI as without it: `--rewards.short X` is laid over the mapping of the config before it; a second
# `--config` with the same entry takes the place of the whole mapping, without a word (jsonargparse issue 236). In a single
# class the second file keeps the settings that it leaves out. Guessed: a later file and an option of the same content do the same.
#
# Seen with Python 3.11:
#   option: long, short
#   file: short
#   file over a class: low=-1.0 high=5.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jsonargparse==4.53.0 PyYAML==6.0.4

cat >"$folder/look.py" <<'PYTHON'
from jsonargparse import ArgumentParser


class Clip:
    def __init__(self, low: float = -10.0, high: float = 10.0) -> None:
        self.low, self.high = low, high


parser = ArgumentParser()
parser.add_argument("--config", action="config")
parser.add_argument("--rewards", type=dict[str, Clip])
parser.add_argument("--clip", type=Clip)
base = [
    *("--config", "rewards: {long: {class_path: __main__.Clip}}"),
    *("--config", "clip: {class_path: __main__.Clip, init_args: {low: -1.0}}"),
]
print("option:", *[", ".join(parser.parse_args([*base, "--rewards.short", "__main__.Clip"]).rewards)])
later = "{rewards: {short: {class_path: __main__.Clip}}, clip: {class_path: __main__.Clip, init_args: {high: 5.0}}}"
config = parser.parse_args([*base, "--config", later])
print("file:", ", ".join(config.rewards))
print(f"file over a class: low={config.clip.init_args.low} high={config.clip.init_args.high}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py")
echo "$seen"
expected="option: long, short
file: short
file over a class: low=-1.0 high=5.0"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
