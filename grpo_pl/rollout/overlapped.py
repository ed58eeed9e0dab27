"""Runs any engine in its own process: it samples the next rollout while the trainer updates on this one."""

import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final, final

import torch
from torch import Tensor
from typing_extensions import override

from grpo_pl.rollout.assembly import with_prompts, without_prompts
from grpo_pl.rollout.engine import EngineLostError, RolloutEngine, SamplingConfig
from grpo_pl.system.atomic_files import DiskFullError
from grpo_pl.system.refusal import ArgumentError, ConfigError, name_of
from grpo_pl.types import Prompt, Rollout

BUCKET_BYTES = 16 << 20
"""The shared memory that weights travel through; a container's whole /dev/shm may be 64 MiB."""
SHUTDOWN_S = 30.0
START_METHOD: Final = "spawn"
"""How Python starts the process: forked from the trainer it could not use CUDA."""

Request = tuple[tuple[tuple[int, ...], ...], int, int, *tuple[float, ...]]
"""Everything beside the weights that responses depend on: prompts' seeds and tokens, group size, sampling."""


@final
class OverlappedEngine(RolloutEngine):
    """Samples with another engine, in its own process, while the trainer updates on the rollout before.

    One-step off-policy, arXiv:2410.18252: the rollout of iteration i + 1 is sampled by the weights of the
    beginning of iteration i, however long each takes and with or without a validation between them: the
    process does one thing after the other, so new weights wait for the rollout under way. Further requests of
    an iteration (rounds of dynamic sampling, greedy responses) are sampled by the newest weights.

    Each of several ranks has a process; a resumed run samples the rollouts that were under way again, except
    on the first rank.

    Args:
        engine: Samples the responses.
        max_staleness: Iterations that the weights of a rollout may be behind when it is trained on. 0 samples
            on request, as `engine` alone does; more than 1 is no faster and shows the effect of staleness.
        threads: CPU threads of the engine's process; null for the environment's number.
    """

    def __init__(self, engine: RolloutEngine, max_staleness: int = 1, threads: int | None = None) -> None:
        if max_staleness < 0:
            raise ArgumentError(f"max_staleness={max_staleness}: expected 0 or more iterations")
        if threads is not None and threads < 1:
            raise ArgumentError(f"threads={threads}: expected 1 or more, or null")
        if engine.ranks > 1:
            raise ArgumentError(
                f"engine.tensor_parallel_size={engine.ranks} needs the trainer's own processes: "
                "set it to 1, or take VLLMEngine alone"
            )
        if engine.offline:
            raise ArgumentError(f"engine={type(engine).__name__} has its responses already: take it alone")
        self.engine, self.max_staleness, self.threads = engine, max_staleness, threads
        self.pretrained, self.head_dtype = engine.pretrained, engine.head_dtype
        self._process: SpawnProcess | None = None
        self._under_way: list[Request] = []
        self._ready: dict[Request, dict[str, Any]] = {}

    @property
    @override
    def weights_dtype(self) -> torch.dtype | None:
        return self._weights_dtype

    @property
    @override
    def lookahead(self) -> int:
        return self.max_staleness

    @override
    def check_sampling(self, sampling: SamplingConfig) -> None:
        self.engine.check_sampling(sampling)

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        context = multiprocessing.get_context(START_METHOD)
        self._connection, theirs = context.Pipe()
        self._bucket = torch.empty(BUCKET_BYTES, dtype=torch.uint8).share_memory_()
        self._process = context.Process(
            target=serve, args=(self.engine, theirs, self._bucket, self.threads), daemon=True
        )
        self._process.start()
        theirs.close()  # or the connection would outlive the process
        self._weights_dtype: torch.dtype | None = self._ask(
            "start", max_sequence_tokens, max_sequences, device
        )

    @override
    def wait(self) -> None:
        while self._under_way:
            rollout = self._answer()
            self._ready[self._under_way.pop(0)] = rollout

    @override
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.wait()
        self._send(("load_weights", version))
        for name, tensor in weights:
            self._send((name, tensor.dtype, tensor.shape))
            for part in as_bytes(tensor).split(len(self._bucket)):
                self._bucket[: len(part)].copy_(part)
                self._send("filled")
                self._answer()
        self._send(None)
        self._answer()

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        self.wait()
        request = as_request(prompts, group_size, sampling)
        if request not in self._ready:
            self._ready[request] = self._ask("generate", prompts, group_size, sampling)
        return with_prompts(prompts, self._ready.pop(request))

    @override
    def prefetch(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> None:
        request = as_request(prompts, group_size, sampling)
        if request not in self._under_way and request not in self._ready:
            self._send(("generate", prompts, group_size, sampling))
            self._under_way.append(request)

    @override
    def state_dict(self) -> dict[str, Any]:
        self.wait()
        return {"rollouts": list(self._ready.items())} if self._ready else {}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ready = dict(state.get("rollouts", [])[: self.max_staleness])

    @override
    def shutdown(self) -> None:
        if self._process is None:
            return
        if self._under_way:
            self._process.kill()  # its samples have no reader
        self._connection.close()
        self._process.join(SHUTDOWN_S)
        self._process.kill()
        self._process.join()
        self._process, self._under_way, self._ready = None, [], {}

    def _ask(self, *command: Any) -> Any:
        self._send(command)
        return self._answer()

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError):  # `_answer` gives the reason
            send(self._connection, message)

    def _answer(self) -> Any:
        """The process's answer to the oldest open command.

        EngineLostError if the process has ended, ConfigError for a refusal by the engine.
        """
        assert self._process is not None, "start() comes first"
        try:
            answer = receive(self._connection)
        except (EOFError, OSError):  # the system closes its end, however it ends
            self._process.join()
            raise EngineLostError(
                f"its process has ended with exit code {self._process.exitcode} (-9 is how the system "
                "ends one when memory is short)",
                self,
            ) from None
        if not isinstance(answer, Failure):
            return answer
        if answer.sentence:
            raise ConfigError(answer.sentence) from RuntimeError(answer.trace)
        raise RuntimeError(f"{name_of(self)}: {type(self.engine).__name__} failed:\n{answer.trace}")


@dataclass(frozen=True)
class Failure:
    """The error that ended an engine's process."""

    trace: str
    sentence: str = ""
    """The message for the user; empty for errors that are not user errors."""


def as_request(prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Request:
    """The key of these responses."""
    keys = tuple((prompt.seed, *prompt.token_ids) for prompt in prompts)
    kept = (sampling.top_p, sampling.top_k) if sampling.truncates else ()
    shown = (sampling.top_logprobs,) if sampling.top_logprobs else ()
    return keys, group_size, sampling.max_tokens, sampling.temperature, *kept, *shown


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, without a copy where it is contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def send(connection: Connection, message: Any) -> None:
    """Send with plain pickle: multiprocessing's own would put each tensor into a shared file."""
    connection.send_bytes(pickle.dumps(message))


def receive(connection: Connection) -> Any:
    """The next message."""
    return pickle.loads(connection.recv_bytes())


# ------------------------------------------------------------------------------------ in the other process


def serve(engine: RolloutEngine, connection: Connection, bucket: Tensor, threads: int | None) -> None:
    """Execute commands from the connection until it is closed or the engine fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the trainer decides
    if threads is not None:
        torch.set_num_threads(threads)
    with suppress(EOFError, ConnectionError):  # the trainer has ended
        while True:
            command = receive(connection)
            try:
                answer = obey(engine, connection, bucket, *command)
            except BaseException as error:
                sentence = str(error) if isinstance(error, ConfigError | DiskFullError) else ""
                send(connection, Failure(traceback.format_exc(), sentence))
                raise SystemExit(1) from error
            send(connection, answer)
    engine.shutdown()


def obey(engine: RolloutEngine, connection: Connection, bucket: Tensor, command: str, *arguments: Any) -> Any:
    """Execute one command and return its answer."""
    match command, *arguments:
        case "start", max_sequence_tokens, max_sequences, device:
            engine.start(max_sequence_tokens=max_sequence_tokens, max_sequences=max_sequences, device=device)
            return engine.weights_dtype
        case "load_weights", version:
            engine.load_weights(received_weights(connection, bucket), version)
        case "generate", prompts, group_size, sampling:
            begin = time.perf_counter()
            rollout = engine.generate(prompts, group_size, sampling)
            engine.rest()
            rollout.metrics["time/sampling_s"] = time.perf_counter() - begin
            return without_prompts(rollout)
    return None


def received_weights(connection: Connection, bucket: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The weights as they arrive, each in new memory: an engine may keep some until it has others."""
    while (header := receive(connection)) is not None:
        name, dtype, shape = header
        tensor = torch.empty(shape, dtype=dtype)
        for part in as_bytes(tensor).split(len(bucket)):
            receive(connection)
            part.copy_(bucket[: len(part)])
            send(connection, "taken")
        yield name, tensor
