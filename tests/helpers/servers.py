"""Real vLLM servers on this machine, each in a process of its own."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grpo_pl.rollout.server import ServerEngine

KEY = "a-key-that-nobody-may-see"
LONGEST = 160
START_S = 480.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Process:
    """A server in a process group of its own, which ends with it."""

    def __init__(self, log: Path, *command: str, port: int | None = None, **environment: str) -> None:
        self.log, self.port, self.command = log, port or free_port(), command
        self.environment = os.environ | {"VLLM_API_KEY": KEY, "OMP_NUM_THREADS": "1"} | environment
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, *self.command, f"--port={self.port}"],
                stdout=file,
                stderr=file,
                env=self.environment,
                start_new_session=True,
            )

    def ask(self, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request(method, path, headers=headers)
        return connection.getresponse()

    def wait_until_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if self.ask("/health").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        pytest.fail(f"no server after {START_S} s:\n{self.log.read_text()[-3000:]}")

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()


OURS = (
    *("-m", "grpo_pl.rollout.server", "--dtype=float32", f"--max_model_len={LONGEST}"),
    *("--kv_cache_gib=0.1", "--transfer=SharedFiles"),
)


def make_engine(servers: list[Process], folder: Path, **arguments: Any) -> ServerEngine:
    return ServerEngine([one.url for one in servers], str(folder), **({"timeout_s": 20.0} | arguments))
