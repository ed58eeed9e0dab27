#!/usr/bin/env bash
# `import lightning.pytorch` imports transformers, where it is installed, though nothing of Lightning uses it.
#
# lightning 2.6.6 imports the face of torchmetrics 1.9.0 for three names (Metric, MetricCollection, __version__). The face
# imports every metric, and BERTScore's module imports transformers.AutoModel at its top, which loads the whole auto
# registry. Guessed: a metric's optional dependency is imported when the metric is made.
#
# Seen with torch 2.13.0, transformers 5.19.0:
#   transformers without it: False
#   transformers with it: True
#   imported by: torchmetrics.functional.text.bert
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0+cpu lightning==2.6.6 torchmetrics==1.9.0 transformers==5.19.0 ||
    "$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 lightning==2.6.6 torchmetrics==1.9.0 transformers==5.19.0

cat >"$folder/look.py" <<'PYTHON'
import sys
import traceback

importers = []


class Watch:
    """Notes which module asks for transformers first."""

    def find_spec(self, name, path=None, target=None):
        if name == "transformers" and not importers:
            frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_stack(None)]
            importers.extend(n for n in frames if n.startswith("torchmetrics."))
        return None


import torch

print("transformers without it:", "transformers" in sys.modules)
sys.meta_path.insert(0, Watch())
import lightning.pytorch

print("transformers with it:", "transformers" in sys.modules)
print("imported by:", importers[0] if importers else "nobody in torchmetrics")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected="transformers without it: False
transformers with it: True
imported by: torchmetrics.functional.text.bert"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
