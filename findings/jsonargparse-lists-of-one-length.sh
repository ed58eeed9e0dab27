#!/usr/bin/env bash
# A list of classes in a later config inherits settings of the earlier list's entries, if both lists have the same length.
#
# jsonargparse 4.53.0 hands each entry of a list the entry that stood at its place before, where the lengths agree, so that a setting
# that the later file leaves out is the earlier file's and not the class's default. One more entry in the later list, and
# all of it starts from defaults. Guessed: a list replaces a list, or merges with it, whatever its length.
#
# Seen with Python 3.11:
#   one entry over one: low=-1.0 high=5.0
#   two entries over one: low=-10.0 high=5.0
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


def transforms(later: str) -> list[Clip]:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--transforms", type=list[Clip])
    first = "transforms: [{class_path: __main__.Clip, init_args: {low: -1.0, high: 1.0}}]"
    return parser.instantiate(parser.parse_args(["--config", first, "--config", f"transforms: {later}"])).transforms


high = "{class_path: __main__.Clip, init_args: {high: 5.0}}"
for name, later in {"one entry": f"[{high}]", "two entries": f"[{high}, {{class_path: __main__.Clip}}]"}.items():
    clip = transforms(later)[0]
    print(f"{name} over one: low={clip.low} high={clip.high}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py")
echo "$seen"
expected="one entry over one: low=-1.0 high=5.0
two entries over one: low=-10.0 high=5.0"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
