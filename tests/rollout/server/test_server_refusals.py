"""What is refused when a run or a server starts, and how: by a sentence without the key."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import Fit, Refused
from helpers.engines import Served
from helpers.repository import ROOT
from helpers.servers import KEY, LONGEST, Process, free_port, make_engine

from grpo_pl.__main__ import main
from grpo_pl.models.loading import load_tokenizer
from grpo_pl.rollout.server.compatible import Expected, check_logprobs
from grpo_pl.rollout.server.connection import ServerError, connected
from grpo_pl.rollout.server.transfer import SharedFiles

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


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
        (("--pretrained=/nowhere",), {"VLLM_API_KEY": KEY}, "pretrained=/nowhere is not a folder"),
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
