"""A config, a model or a checkpoint from anywhere runs no code, and no secret reaches the run's folder."""

import ast
import asyncio
import inspect
import io
import json
import os
import pickle
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers.commands import Fit, Refused
from helpers.repository import ROOT
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from grpo_pl.runs.manifest import SHARDED
from grpo_pl.runs.safe_loading import INDEX, IndexUnpickler, check_checkpoint, read_index

SECRET = "sk-live-0123456789abcdef"
CODE = sorted((ROOT / "grpo_pl").rglob("*.py")) + sorted((ROOT / "tools").rglob("*.py"))


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Touch:
    return Touch(tmp_path / "touched")


def test_the_trap_works(trap: Touch) -> None:
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists()


# ----------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_runs_nothing(
    zipped: bool, fit: Fit, refused: Refused, trap: Touch, tmp_path: Path
) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": trap}, path) if zipped else path.write_bytes(pickle.dumps(trap))
    assert "not a readable checkpoint" in refused(fit, "--ckpt_path", path)
    assert "weights_only=false would run" in refused(fit, "--ckpt_path", path, "--weights_only", "false")
    assert not trap.path.exists()


def test_the_weights_of_a_model_run_nothing(
    fit: Fit, refused: Refused, trap: Touch, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"model.embed_tokens.weight": trap}, folder / "pytorch_model.bin")
    refused(fit, pretrained=folder)
    assert not trap.path.exists()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A sharded checkpoint as torch writes it."""
    weights, optimizer = torch.nn.Linear(2, 2), {"param_groups": [{"lr": 0.1, "params": ["weight"]}]}
    content = {"state_dict": weights.state_dict(), "optimizer_0": optimizer}
    dcp.save(content, checkpoint_id=tmp_path / "shards", no_dist=True)
    torch.save({"loops": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "shards" / SHARDED)
    return tmp_path / "shards"


def test_shards_that_are_data_are_read(shards: Path) -> None:
    check_checkpoint(shards)
    assert "state_dict.weight" in read_index(shards).state_dict_metadata


@pytest.mark.parametrize("file", [INDEX, SHARDED, "an entry"])
def test_shards_run_nothing(file: str, shards: Path, trap: Touch, fit: Fit, refused: Refused) -> None:
    """Their index is a pickle, which torch itself reads with all that it holds; so are their entries."""
    if file == INDEX:
        (shards / INDEX).write_bytes(pickle.dumps(trap))
    elif file == SHARDED:
        torch.save({"loops": trap}, shards / SHARDED)
    else:
        dcp.save({"optimizer_0": {"lr": trap}}, checkpoint_id=shards, no_dist=True)
    assert "not a readable checkpoint" in refused(fit, "--ckpt_path", shards)
    assert not trap.path.exists()


# ------------------------------------------------------------------------------------- what a config can name

CALL = "{class_path: os.mkdir, init_args: {path: TRAP}}"
START = "{class_path: subprocess.Popen, init_args: {args: [mkdir, TRAP]}}"
OTHER = "{class_path: http.server.HTTPServer, init_args: {server_address: [127.0.0.1, 0]}}"
NAMED = {
    "an optimizer": ("--model.optimizer", CALL),
    "a schedule": ("--model.lr_scheduler", CALL),
    "a function of a schedule": (
        "--model.lr_scheduler",
        f"{{class_path: torch.optim.lr_scheduler.LambdaLR, init_args: {{lr_lambda: {CALL}}}}}",
    ),
    "a reward": ("--model.rewards", f"{{a: {CALL}}}"),
    "a reward's function": (
        "--model.rewards",
        f"{{a: {{class_path: Function, init_args: {{function: {CALL}}}}}}}",
    ),
    "a function in a worker": (
        "--model.rewards",
        f"{{a: {{class_path: WorkerFunction, init_args: {{function: {CALL}}}}}}}",
    ),
    "a shell for a function": (
        "--model.rewards",
        "{a: {class_path: Function, init_args: {function: os.system}}}",
    ),
    "a callback": ("--trainer.callbacks", f"[{START}]"),
    "a function of a callback": (
        "--trainer.callbacks",
        f"[{{class_path: LambdaCallback, init_args: {{setup: {CALL}}}}}]",
    ),
    "a logger": ("--trainer.logger", START),
    "a strategy": ("--trainer.strategy", START),
    "a hook of a strategy": (
        "--trainer.strategy",
        f"{{class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {{ddp_comm_hook: {CALL}}}}}",
    ),
    "a value of any type": ("--data.format.template_kwargs", f"{{a: {START}}}"),
    "another class": ("--data.format.template_kwargs", f"{{a: {OTHER}}}"),
    "an engine": ("--data.engine", START),
    "a tag": ("--model.kl", "!!python/object/apply:os.mkdir [TRAP]"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_config_runs_nothing(name: str, fit: Fit, refused: Refused, trap: Touch) -> None:
    key, value = NAMED[name]
    refused(fit, key, value.replace("TRAP", str(trap.path)))
    assert not trap.path.exists()


def test_a_class_that_is_no_component_is_refused_by_its_key(fit: Fit, refused: Refused) -> None:
    said = refused(fit, "--data.format.template_kwargs", f"{{a: {OTHER}}}")
    assert "data.format.template_kwargs.a=http.server.HTTPServer is nothing that a config can give" in said


# -------------------------------------------------------------------------------------------- what is written


class Grader(BaseHTTPRequestHandler):
    """A judge that gives every response a half, and remembers the key that it was shown."""

    keys: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        self.keys.add(self.headers["Authorization"])
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"choices": [{"message": {"content": "Score: 0.5"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[str]:
    """The address of a judge."""
    with HTTPServer(("127.0.0.1", 0), Grader) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_no_key_is_written_into_the_runs_folder(
    fit: Fit, judge: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("VLLM_API_KEY", "WANDB_API_KEY", "JUDGE_KEY"):
        monkeypatch.setenv(name, SECRET)
    settings = {"url": judge, "model": "m", "api_key_variable": "JUDGE_KEY"}
    rewards = json.dumps({"judge": {"class_path": "Judge", "init_args": settings}})
    root = tmp_path / "run"
    logger = f"{{class_path: CSVLogger, init_args: {{save_dir: {root}}}}}"
    run = fit("--model.rewards", rewards, "--trainer.max_epochs", 1, "--trainer.logger", logger, root=root)
    assert Grader.keys == {f"Bearer {SECRET}"}
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "samples.jsonl", "metrics.csv"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (
            "data.engine",
            f"{{class_path: ServerEngine, init_args: {{urls: [http://a], api_key_variable: {SECRET}}}}}",
        ),
        ("data.engine", f"{{class_path: ServerEngine, init_args: {{urls: ['http://u:{SECRET}@a']}}}}"),
        ("data.format.template_kwargs", f"{{api_key: {SECRET}}}"),
        ("trainer.logger", f"{{class_path: CSVLogger, init_args: {{save_dir: a, name: '{SECRET}'}}}}"),
    ],
    ids=["for a variable", "in an address", "under a telling name", "known from the environment"],
)
def test_a_key_as_a_value_is_refused_and_not_shown(
    key: str, value: str, fit: Fit, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key == "trainer.logger":
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
    said = refused(fit, f"--{key}", value)
    assert "environment variable" in said
    assert SECRET not in said


# ---------------------------------------------------------------------------------------------- servers, code


def test_servers_listen_on_loopback_and_know_nobody_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo_pl.rollout.server.__main__ import serve
    from grpo_pl.rollout.server.api_key import RequireKey
    from grpo_pl.rollout.server.transfer import own_address

    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"
    assert own_address(["http://127.0.0.1:8001"]) == "127.0.0.1"  # where NCCL's ranks meet
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    let_in: list[str] = []

    async def app(scope: dict[str, Any], *_: Any) -> None:
        let_in.append(scope["path"])

    async def ask(path: str, **headers: str) -> None:
        coded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await RequireKey(app)({"type": "http", "path": path, "headers": coded}, app, send)  # type: ignore[arg-type]

    async def send(_: dict[str, Any]) -> None:
        return None

    for path in ("/v1/completions", "/update_weights", "/collective_rpc", "/health"):
        asyncio.run(ask(path))
        asyncio.run(ask(path, authorization="Bearer "))
    assert set(let_in) == {"/health"}
    asyncio.run(ask("/update_weights", authorization=f"Bearer {SECRET}"))
    assert let_in[-1] == "/update_weights"


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """All calls in a file, by the name of what is called."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(call.func), call) for call in found]


UNPICKLE = {
    "overlapped.py": "the trainer and the process of its own engine, over a pipe",
    "in_killable.py": "a worker or an episode what its trainer sends it; it answers in JSON",
    "nursery.py": "the process of an environment the object of the config, which its trainer has pickled",
    "task_rows.py": "a run what its own process has made of its request, over pipes",
    "safe_loading.py": "an index, by a class that builds nothing else",
}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_read_in_a_way_that_could_run_it(path: Path) -> None:
    for name, call in calls(path):
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code", "False") == "False"
        if name == "torch.load":
            assert said["weights_only"] == "True"
        if name.startswith(
            ("pickle.load", "pickle.Unpickler", "cloudpickle", "dill", "joblib.load", "marshal")
        ):
            assert path.name in UNPICKLE
        assert name not in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec") or "sandbox" in path.parts
    assert '"trust_remote_code": True' not in path.read_text()


def test_every_model_is_loaded_without_code_of_its_own() -> None:
    loads = [
        call
        for name, call in calls(ROOT / "grpo_pl" / "models" / "loading.py")
        if name.endswith("from_pretrained")
    ]
    assert len(loads) >= 4
    for call in loads:
        generation = ast.unparse(call.func).startswith("GenerationConfig")
        assert generation or "**NO_CODE" in ast.unparse(call)


class _Asks:
    """Pickled as a call of getattr, as Python 3.11.0 to 3.11.3 pickle members of enums."""

    def __init__(self, kind: object, name: str) -> None:
        self.asked = kind, name

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, self.asked


def test_a_member_of_an_enum_is_read_however_python_has_pickled_it() -> None:
    def read(kind: object, name: str) -> object:
        return IndexUnpickler(io.BytesIO(pickle.dumps(_Asks(kind, name)))).load()

    assert (
        read(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT") is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    )
    for kind, name in ((_MEM_FORMAT_ENCODING, "__init__"), (Metadata, "__init__"), (OrderedDict, "fromkeys")):
        with pytest.raises(pickle.UnpicklingError, match=r"it names builtins\.getattr"):
            read(kind, name)
