#!/usr/bin/env bash
# Everything that guards what lands: ruff, mypy, pytest. Arguments go to pytest; its summary is the last thing printed.
# Tests run in two processes of one thread each (a file's tests in one of them); say `-n 0` for one that can be debugged.
# All steps run, and one that fails fails the script.
set -euo pipefail

# shellcheck source=tools/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$setup_root"

failed=()
step() {
    echo "test: $*"
    "$@" || failed+=("$*")
}

step python tools/fetch_model.py
step ruff check .
step ruff format --check .
step mypy

((${#failed[@]} == 0)) || printf 'test: FAILED: %s\n' "${failed[@]}"
echo "test: pytest $*"
status=0
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest -n 2 --dist loadfile "$@" || status=$?
((${#failed[@]} == 0)) || exit 1
exit "$status"
