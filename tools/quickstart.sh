#!/usr/bin/env bash
# From a fresh clone to a trained model: installs, fetches the demo model, trains it on a laptop-sized task, and says
# what it learned. Arguments go to the training job, after configs/quickstart.yaml:
#
#   bash tools/quickstart.sh
#   bash tools/quickstart.sh --trainer.default_root_dir=runs/second_try
#
# Relative paths count from the repository's root.
set -euo pipefail

# shellcheck source=tools/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" main
cd "$setup_root"
echo "quickstart: fetching the demo model, where it is not there yet (a minute or two)"
model=$(python tools/fetch_model.py | tail -n 1)
echo "quickstart: the model is in $model"

run=runs/quickstart
previous=
for argument in "$@"; do
    [[ $previous == --trainer.default_root_dir ]] && run=$argument
    [[ $argument == --trainer.default_root_dir=* ]] && run=${argument#*=}
    previous=$argument
done

echo "quickstart: training; the engine's start and the first validation take up to a minute each"
started=$SECONDS
python -m grpo_pl fit --config configs/quickstart.yaml "$@"
took=$((SECONDS - started))

echo
python - "$run/metrics.csv" <<'PYTHON'
import csv, pathlib, sys
path = pathlib.Path(sys.argv[1])
if not path.is_file():
    sys.exit(f"quickstart: the job wrote no {path}")
with path.open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row.get("val/accuracy")]
if not rows:
    sys.exit(f"quickstart: {path} has no val/accuracy")
first, last = rows[0], rows[-1]
print(f"accuracy before training  {float(first['val/accuracy']):.3f}")
print(f"accuracy after training   {float(last['val/accuracy']):.3f}  (iteration {last.get('iteration', '?')})")
PYTHON
echo "the job took              $((took / 60)) min $((took % 60)) s, without installing and fetching the model"
echo "its files"
for file in config.yaml metrics.csv samples.jsonl checkpoints curves.png; do
    [[ ! -e $run/$file ]] || echo "  $run/$file"
done
