"""Two real vLLM servers on this machine: their weights, their deaths, and ranks that share them."""

import json
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Fit
from helpers.engines import SAMPLING, Served, mismatch, perturbed, prompts, same_rollout
from helpers.mixtures import make_tiny
from helpers.run_results import column
from helpers.servers import KEY, OURS, Process, make_engine

from grpo_pl.models import CausalLM
from grpo_pl.models.full_weights import full_weights
from grpo_pl.rollout.engine import EngineLostError, SamplingConfig
from grpo_pl.rollout.server import ServerEngine
from grpo_pl.rollout.server import engine as engine_module
from grpo_pl.rollout.server.requests import Answering
from grpo_pl.rollout.server.transfer import SharedFiles, buckets
from grpo_pl.rollout.vllm import VLLMEngine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


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


def test_experts_are_those_of_the_trainer_after_a_sync(tmp_path: Path) -> None:
    folder = make_tiny("qwen3_moe", tmp_path / "model", head_dim=32, mlp_only_layers=[])
    server = Process(tmp_path / "server.log", *OURS, f"--pretrained={folder}")
    try:
        server.wait_until_ready()
        served = Served(make_engine([server], folder), folder)
        model = perturbed(folder)
        served.sync(model)
        gaps = mismatch(model, served.engine.generate(prompts(folder), 4, SAMPLING))
        served.engine.shutdown()
    finally:
        server.kill()
    assert gaps.mean() < 1e-5


def test_servers_and_the_colocated_engine_sample_the_same(served: Served, colocated: Served) -> None:
    model = perturbed(served.folder)
    for one in (served, colocated):
        one.sync(model)
    for sampling in (SAMPLING, SamplingConfig(max_tokens=8, temperature=0.0)):
        ours, theirs = (
            one.engine.generate(prompts(served.folder), 4, sampling) for one in (served, colocated)
        )
        assert same_rollout(ours, theirs)


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


def test_the_other_server_answers_for_a_killed_one_which_comes_back_with_new_weights(
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
    assert same_rollout(disturbed, undisturbed)
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
    assert same_rollout(disturbed, undisturbed)
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
