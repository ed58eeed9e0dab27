"""Two real vLLM servers on this machine: their weights, their deaths, and what is refused at the start."""

import asyncio
import http.client
import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION, column
from test_engines import Served, mismatch, perturbed, prompts

from grpo_pl.__main__ import main
from grpo_pl.models import CausalLM
from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.loading import load_tokenizer
from grpo_pl.rollout.engine import EngineLostError, SamplingConfig
from grpo_pl.rollout.server import ServerEngine
from grpo_pl.rollout.server import engine as engine_module
from grpo_pl.rollout.server.compatible import Expected, check_logprobs
from grpo_pl.rollout.server.connection import ServerError, connected
from grpo_pl.rollout.server.requests import Answering
from grpo_pl.rollout.server.transfer import SharedFiles, buckets
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.types import Rollout

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
KEY = "a-key-that-nobody-may-see"
LONGEST = 160
START_S = 480.0
SAMPLING = SamplingConfig(max_tokens=24, temperature=0.8)


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


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    folder = tmp_path_factory.mktemp("servers")
    both = [Process(folder / f"{i}.log", *OURS, f"--pretrained={tiny_model}") for i in range(2)]
    try:
        for one in both:
            one.wait_until_ready()
        yield both
    finally:
        for one in both:
            one.kill()


@pytest.fixture
def servers(pair: list[Process]) -> list[Process]:
    """Both of them, alive."""
    for one in pair:
        if one.process.poll() is not None:
            one.start()
    for one in pair:
        one.wait_until_ready()
    return pair


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)


def make_engine(servers: list[Process], folder: Path, **arguments: Any) -> ServerEngine:
    return ServerEngine([one.url for one in servers], str(folder), **({"timeout_s": 20.0} | arguments))


@pytest.fixture
def served(servers: list[Process], tiny_model: Path) -> Iterator[Served]:
    one = Served(make_engine(servers, tiny_model), tiny_model)
    yield one
    one.engine.shutdown()


@pytest.fixture(scope="module")
def colocated(tiny_model: Path) -> Iterator[Served]:
    one = Served(VLLMEngine(str(tiny_model), "float32", 0.1), tiny_model)
    yield one
    one.engine.shutdown()


def same(one: Rollout, other: Rollout) -> bool:
    names = ("token_ids", "sampling_logprobs", "truncated", "loss_mask")
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
        and one.responses == other.responses
        and one.token_ends == other.token_ends
    )


def after(
    monkeypatch: pytest.MonkeyPatch, server: Process, answers: int, do: Callable[[], None]
) -> Callable[[], int]:
    """Does something once, when a server has given so many answers; returns how many it has given."""
    take, given = Answering._take, 0

    def taken(self: Answering, who: Any, number: int, outcome: Any) -> None:
        nonlocal given
        given += who.url == server.url and isinstance(outcome, dict)
        take(self, who, number, outcome)
        if given == answers:
            given += 1
            do()

    monkeypatch.setattr(Answering, "_take", taken)
    return lambda: given


# --------------------------------------------------------------------------------------------------- weights


def test_after_a_sync_the_logprobs_are_those_of_the_trainer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MIB", 40)  # buckets of 10 kB: more than ten, and one weight is larger
    model = perturbed(served.folder)
    served.sync(CausalLM(str(served.folder)).build())
    stale = served.engine.generate(prompts(served.folder), 4, SAMPLING)
    assert mismatch(model, stale).mean() > 0.01, "the perturbation is too small to show a stale engine"
    served.sync(model, version=7)
    fresh = served.engine.generate(prompts(served.folder), 4, SAMPLING)
    assert mismatch(model, fresh).mean() < 1e-4
    assert fresh.policy_version == 7


def test_servers_and_the_colocated_engine_sample_the_same(served: Served, colocated: Served) -> None:
    model = perturbed(served.folder)
    for one in (served, colocated):
        one.sync(model)
    for sampling in (SAMPLING, SamplingConfig(max_tokens=8, temperature=0.0)):
        ours, theirs = (
            one.engine.generate(prompts(served.folder), 4, sampling) for one in (served, colocated)
        )
        assert same(ours, theirs)


def test_a_bucket_is_full_or_one_weight() -> None:
    sizes = {"a": 3, "b": 4, "c": 1, "d": 9, "e": 1}
    weights = ((name, torch.zeros(size, dtype=torch.uint8)) for name, size in sizes.items())
    assert [list(bucket) for bucket in buckets(weights, 7)] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_weights_leave_no_files_behind(servers: list[Process], tiny_model: Path, tmp_path: Path) -> None:
    one = Served(make_engine(servers, tiny_model, transfer=SharedFiles(str(tmp_path))), tiny_model)
    one.sync(CausalLM(str(tiny_model)).build())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    one.engine.shutdown()
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_not_taken(served: Served) -> None:
    weights = list(full_weights(CausalLM(str(served.folder)).build().language_model))
    with pytest.raises(EngineLostError, match=r"no server is left .*no weights have come for"):
        served.engine.load_weights(weights[:-1], version=1)
    served.sync(CausalLM(str(served.folder)).build(), version=2)
    assert served.engine.generate(prompts(served.folder), 1, SAMPLING).policy_version == 2


def test_only_a_request_with_the_key_is_answered(servers: list[Process]) -> None:
    for path in ("/v1/models", "/weight_info", "/server_info", "/tokenize", "/nothing"):
        assert servers[0].ask(path).status == 401
        assert servers[0].ask(path, Authorization="Bearer another").status == 401
    assert servers[0].ask("/collective_rpc", "POST").status == 401
    assert servers[0].ask("/health").status == 200
    assert servers[0].ask("/weight_info", Authorization=f"Bearer {KEY}").status == 200


# -------------------------------------------------------------------------------------------------- failures


def test_what_a_killed_server_owes_is_asked_of_the_other_and_it_comes_back_with_new_weights(
    servers: list[Process],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = make_engine(servers, tiny_model, max_sequences=8)
    model, some = perturbed(tiny_model), prompts(tiny_model)
    served = Served(engine, tiny_model)
    served.sync(model)
    undisturbed = engine.generate(some, 32, SAMPLING)
    assert undisturbed.metrics == {"rollout/servers_lost": 0, "rollout/retried": 0}

    given = after(monkeypatch, servers[1], 5, lambda: servers[1].signal(signal.SIGKILL))
    monkeypatch.setattr(logging.getLogger("grpo_pl"), "propagate", True)
    disturbed = engine.generate(some, 32, SAMPLING)
    assert given() >= 5
    assert same(disturbed, undisturbed)
    assert disturbed.metrics["rollout/servers_lost"] == 1
    assert disturbed.metrics["rollout/retried"] > 5
    assert f"the server at {servers[1].url} is lost" in caplog.text

    servers[1].process.wait()
    servers[1].start()
    servers[1].wait_until_ready()
    alone = engine.generate(some, 4, SAMPLING)
    assert alone.metrics["rollout/servers_lost"] == 1, "it has the weights of its folder"
    other = CausalLM(str(tiny_model)).build()
    served.sync(other, version=2)
    assert f"the server at {servers[1].url} is back" in caplog.text
    given = after(monkeypatch, servers[1], 1, lambda: None)
    both = engine.generate(some, 4, SAMPLING)
    assert given() > 1
    assert both.metrics == {"rollout/servers_lost": 0, "rollout/retried": 0}
    assert mismatch(other, both).mean() < 1e-4
    engine.shutdown()


def test_weights_are_sent_in_the_type_that_is_asked_for(servers: list[Process], tiny_model: Path) -> None:
    engine, model, rounded = (
        make_engine(servers, tiny_model, dtype="bfloat16"), perturbed(tiny_model), perturbed(tiny_model)
    )  # fmt: skip
    for parameter in rounded.parameters():
        parameter.data = parameter.bfloat16().float()
    Served(engine, tiny_model).sync(model)
    rollout = engine.generate(prompts(tiny_model), 4, SAMPLING)
    assert mismatch(rounded, rollout).mean() < 1e-5 < mismatch(model, rollout).mean()
    engine.shutdown()


def test_a_server_that_hangs_is_left_alone_and_taken_back_when_it_has_the_weights(
    servers: list[Process], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(servers, tiny_model, max_sequences=8, timeout_s=5.0)
    served, some = Served(engine, tiny_model), prompts(tiny_model)
    served.sync(perturbed(tiny_model))
    undisturbed = engine.generate(some, 32, SAMPLING)
    after(monkeypatch, servers[0], 5, lambda: servers[0].signal(signal.SIGSTOP))
    try:
        disturbed = engine.generate(some, 32, SAMPLING)
    finally:
        servers[0].signal(signal.SIGCONT)
    assert same(disturbed, undisturbed)
    assert disturbed.metrics["rollout/servers_lost"] == 1
    assert disturbed.metrics["rollout/retried"] > 0
    model = CausalLM(str(tiny_model)).build()
    served.sync(model, version=2)
    both = engine.generate(some, 4, SAMPLING)
    assert both.metrics["rollout/servers_lost"] == 0
    assert mismatch(model, both).mean() < 1e-4
    engine.shutdown()


def test_a_server_that_was_given_other_weights_is_not_believed(
    servers: list[Process], tiny_model: Path
) -> None:
    """As one that was started again between two rollouts, whose answers look like any others."""
    ours, first, both = (make_engine(some, tiny_model) for some in (servers, servers[:1], servers))
    model = CausalLM(str(tiny_model)).build()
    Served(ours, tiny_model).sync(model)
    Served(first, tiny_model).sync(perturbed(tiny_model))
    rollout = ours.generate(prompts(tiny_model), 4, SAMPLING)
    assert rollout.metrics["rollout/servers_lost"] == 1
    assert mismatch(model, rollout).mean() < 1e-4
    Served(both, tiny_model).sync(model)
    with pytest.raises(EngineLostError, match=r"no server is left .*it has the weights") as end:
        ours.generate(prompts(tiny_model), 1, SAMPLING)
    assert "\n" not in str(end.value)
    for engine in (ours, first, both):
        engine.shutdown()


@pytest.fixture
def run(servers: list[Process]) -> tuple[str, ...]:
    urls = json.dumps([one.url for one in servers])
    return ("--data.engine", "ServerEngine", "--data.engine.urls", urls, *NO_VALIDATION)


def test_servers_sample_while_the_trainer_updates(fit: Fit, run: tuple[str, ...]) -> None:
    inner = ("--data.engine.engine", *run[1:2], "--data.engine.engine.urls", *run[3:])
    folder = fit("--data.engine", "OverlappedEngine", *inner, "--model.correction", "ImportanceCorrection")
    assert column(folder, "rollout/staleness") == [0, 2, 2]
    assert column(folder, "sync/logprob_mismatch")[0] < 1e-5


# ----------------------------------------------------------------------------------------------------- ranks


def rank(number: int, store: Path, urls: list[str], folder: Path, out: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=number, world_size=2)
    served = Served(ServerEngine(urls, str(folder)), folder)
    model = perturbed(folder)
    pushed = [(name, tensor + number) for name, tensor in full_weights(model.language_model)]
    served.engine.load_weights(iter(pushed), version=3)
    rollout = served.engine.generate(prompts(folder)[number : number + 1], 4, SAMPLING)
    gap = float(mismatch(model, rollout).mean())
    (out / f"{number}.json").write_text(json.dumps([gap, rollout.policy_version, len(rollout.responses)]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_ranks_share_servers_and_only_the_first_one_pushes(
    servers: list[Process], tiny_model: Path, tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "store", [one.url for one in servers], tiny_model, tmp_path)
    both = [spawn.Process(target=rank, args=(number, *arguments)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    for number in range(2):
        gap, version, responses = json.loads((tmp_path / f"{number}.json").read_text())
        assert gap < 1e-4
        assert (version, responses) == (3, 4)


# ------------------------------------------------------------------------------------------ what is refused


def test_a_server_that_is_not_there_is_named(
    fit: Fit, refused: Refused, servers: list[Process], run: tuple[str, ...]
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    said = refused(fit, *run[:2], "--data.engine.urls", json.dumps([servers[0].url, nowhere]))
    assert f"data.engine: the server at {nowhere} does not answer" in said


def test_a_wrong_key_is_refused_and_not_shown(
    fit: Fit, refused: Refused, run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "another-key")
    said = refused(fit, *run, "--data.engine.api_key_variable", "OTHER_KEY")
    assert "has another API key than OTHER_KEY" in said
    assert "another-key" not in said


def test_a_key_that_is_not_set_is_asked_for(fit: Fit, refused: Refused, run: tuple[str, ...]) -> None:
    said = refused(fit, *run, "--data.engine.api_key_variable", "NO_SUCH_KEY")
    assert "data.engine.api_key_variable=NO_SUCH_KEY is not set" in said


def test_sequences_longer_than_a_server_reads_are_refused(
    fit: Fit, refused: Refused, run: tuple[str, ...]
) -> None:
    said = refused(fit, *run, "--data.sampling.max_tokens", "64")
    assert f"reads {LONGEST} tokens, and data.max_prompt_tokens and data.sampling.max_tokens make 192" in said


def test_another_vocabulary_is_refused(
    fit: Fit, refused: Refused, run: tuple[str, ...], smollm: Path
) -> None:
    said = refused(fit, *run, "--data.engine.pretrained", smollm)
    assert "has a model with another vocabulary" in said


def test_a_folder_that_the_servers_do_not_see_is_refused(
    servers: list[Process], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = make_engine(
        servers, tiny_model, transfer=SharedFiles("/proc/self/cwd")
    )  # another for each process
    with pytest.raises(ValueError, match=r"cannot take weights by SharedFiles .*sees no folder"):
        Served(engine, tiny_model)
    engine.shutdown()


@pytest.mark.parametrize(
    ("key", "value"),
    [("urls", "[]"), ("urls", '["localhost:8000"]'), ("timeout_s", 0), ("max_sequences", 0)],
)
def test_settings_that_cannot_be_are_refused(
    fit: Fit, refused: Refused, run: tuple[str, ...], key: str, value: object
) -> None:
    assert f"data.engine.{key}=" in refused(fit, *run, f"--data.engine.{key}", value)


def test_servers_shared_by_engines_that_know_nothing_of_each_other_are_refused(
    fit: Fit, refused: Refused, run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    inner = ("--data.engine.engine", *run[1:2], "--data.engine.engine.urls", *run[3:])
    said = refused(fit, "--data.engine", "OverlappedEngine", *inner)
    assert "data.engine OverlappedEngine cannot share servers among ranks" in said


def test_a_bucket_without_room_is_refused(fit: Fit, refused: Refused, run: tuple[str, ...]) -> None:
    transfer = ("--data.engine.transfer", "SharedFiles", "--data.engine.transfer.bucket_mib", "0")
    assert "data.engine.transfer.bucket_mib=0: expected" in refused(fit, *run, *transfer)


def test_a_server_as_vllm_starts_it_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """It takes no weights, and its log-probabilities are those of temperature 1."""
    plain = "import sys; from grpo_pl.rollout.server.__main__ import vllm_serve; vllm_serve(sys.argv[1:])"
    sizes = (f"--max-model-len={LONGEST}", f"--kv-cache-memory-bytes={1 << 27}", "--enforce-eager")
    server = Process(tmp_path / "log", "-c", plain, str(tiny_model), "--dtype=float32", *sizes)
    try:
        server.wait_until_ready()
        with pytest.raises(ValueError, match=r"takes no weights .*: start it with python -m grpo_pl"):
            Served(make_engine([server], tiny_model), tiny_model)
        with pytest.raises(ServerError, match="gives log-probabilities from before the temperature"):
            asyncio.run(ask_for_logprobs(server, tiny_model))
    finally:
        server.kill()


async def ask_for_logprobs(server: Process, folder: Path) -> None:
    encode = load_tokenizer(str(folder)).encode
    expected = Expected(max_sequence_tokens=LONGEST, encode=encode, key_variable="VLLM_API_KEY")
    async with connected([server.url], KEY, 60.0) as (one,):
        await check_logprobs(one, expected)


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        ((), {}, "api_key_variable=VLLM_API_KEY is not set: export an API key of your own"),
        (("--pretrained=/nowhere",), {"VLLM_API_KEY": KEY}, "pretrained=/nowhere is no folder"),
    ],
)
def test_a_server_that_cannot_start_says_so_in_one_sentence(
    tiny_model: Path, arguments: tuple[str, ...], variables: dict[str, str], sentence: str
) -> None:
    words = [sys.executable, "-m", "grpo_pl.rollout.server", f"--pretrained={tiny_model}", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_API_KEY"} | variables
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"grpo_pl: error: {sentence}")
    assert "Traceback" not in done.stderr


def test_a_plan_needs_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    tiny = ("--config", str(ROOT / "configs" / "tiny.yaml"), "--pretrained", str(tiny_model))
    nowhere = ("--config", str(ROOT / "configs" / "engine" / "server.yaml"))
    main(["plan", *tiny, *nowhere, "--trainer.default_root_dir", str(tmp_path)])
    assert "engine" not in capsys.readouterr().out.split("Memory")[0]


def test_the_key_stands_in_no_log_and_no_command_line(servers: list[Process]) -> None:
    for one in servers:
        assert "serve: ready at" in one.log.read_text()
        assert KEY not in one.log.read_text()
        assert KEY.encode() not in Path(f"/proc/{one.process.pid}/cmdline").read_bytes()


# ------------------------------------------------------------------------------------------------- the last


def test_a_run_ends_the_same_when_a_server_is_killed(
    fit: Fit, servers: list[Process], run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(*run)
    assert column(whole, "rollout/servers_lost") == [0, 0, 0]
    assert max(column(whole, "sync/logprob_mismatch")) < 1e-5
    after(monkeypatch, servers[0], 10, lambda: servers[0].signal(signal.SIGKILL))  # 8 answers an iteration
    disturbed = fit(*run)
    assert column(disturbed, "rollout/servers_lost") == [0, 1, 1]
    assert column(disturbed, "rollout/retried")[1] > 0
    assert (whole / "samples.jsonl").read_text() == (disturbed / "samples.jsonl").read_text()
