#!/usr/bin/env bash
# Everything that guards what lands: ruff, mypy, pytest. Arguments go to pytest; its summary is the last thing printed.
# Tests run in two processes of one thread each (a file's tests in one of them); say `-n 0` for one that can be debugged.
# All steps run, and one that fails fails the script.
#
#   bash tools/test.sh --slurm    # instead: jobs on a real SLURM of two nodes on this machine, which it installs as root
#   bash tools/test.sh --browser  # instead: reports in a real browser, which it installs as root
set -euo pipefail

# shellcheck source=tools/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" all
cd "$setup_root"

# install PACKAGES...: from Debian, as root; anyone else has them already, or the tests say what is missing
install() {
    [[ $(id -u) == 0 ]] || return 0
    setup_step "asking Debian what there is" apt-get update
    setup_step "installing Debian's $* (a minute)" \
        env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

if [[ ${1:-} == --slurm ]]; then
    type slurmctld slurmd munged >/dev/null 2>&1 || install slurm-wlm munge
    shift
    exec python -m pytest tests/slurm -m slurm "$@"
fi

if [[ ${1:-} == --browser ]]; then
    type chromium chromedriver >/dev/null 2>&1 || install chromium chromium-driver
    shift
    exec python -m pytest tests/commands/compare -m browser "$@"
fi

failed=()
step() {
    echo "test: $*"
    "$@" || failed+=("$*")
}

echo "test: python tools/fetch_model.py"
python tools/fetch_model.py & # meanwhile mypy takes a minute of the other core
fetching=$!
step ruff check .
step ruff format --check .
step mypy
wait "$fetching" || failed+=("python tools/fetch_model.py")

((${#failed[@]} == 0)) || printf 'test: FAILED: %s\n' "${failed[@]}"
echo "test: pytest $*"
status=0
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || status=$?
((${#failed[@]} == 0)) || exit 1
exit "$status"
