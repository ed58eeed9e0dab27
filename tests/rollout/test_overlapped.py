"""The engine in a process of its own: what it samples with which weights, and how it ends."""

import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from helpers.commands import Fit, Refused
from helpers.engines import SAMPLING, Served, check_a_sync, perturbed, prompts, same_rollout
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION, callback, column, same, saved, untimed

from grpo_pl.__main__ import main
from grpo_pl.models import CausalLM
from grpo_pl.models.full_weights import full_weights
from grpo_pl.rollout import overlapped
from grpo_pl.rollout.engine import EngineLostError, RolloutEngine, SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.overlapped import OverlappedEngine
from grpo_pl.rollout.vllm import VLLMEngine

pytestmark = pytest.mark.usefixtures("forked_engines")
CONFIG = ROOT / "configs" / "tiny.yaml"
START_METHOD = overlapped.START_METHOD
OVERLAPPED = (
    *("--data.engine", "OverlappedEngine", "--data.engine.threads", "1"),
    *("--data.engine.engine", "InProcessEngine"),
)
CORRECTED = ("--model.correction", "ImportanceCorrection")


# ----------------------------------------------------------------------------------------------- the engine


@pytest.fixture(
    scope="module", params=["InProcessEngine", pytest.param("VLLMEngine", marks=pytest.mark.vllm)]
)
def served(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Served]:
    """vLLM in a process that is started as a run's is."""
    folder, with_vllm = str(tiny_model), request.param == "VLLMEngine"
    inner = VLLMEngine(folder, "float32", 0.1) if with_vllm else InProcessEngine(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlapped, "START_METHOD", START_METHOD if with_vllm else "forkserver")
        patch.setattr(overlapped, "BUCKET_BYTES", 9999)  # most weights of the tiny model take several
        one = Served(OverlappedEngine(inner, threads=1), tiny_model)
    yield one
    one.engine.shutdown()


def test_after_a_sync_the_logprobs_are_those_of_the_trainer(served: Served) -> None:
    check_a_sync(served)


def test_what_is_prefetched_is_sampled_by_the_weights_before_the_next_ones(served: Served) -> None:
    first, second = CausalLM(str(served.folder)).build(), perturbed(served.folder)
    some = prompts(served.folder)
    served.sync(first, version=3)
    now = served.engine.generate(some, 4, SAMPLING)
    served.engine.prefetch(some, 4, SAMPLING)
    served.sync(second, version=5)
    served.engine.prefetch(some, 4, SAMPLING)
    ahead = served.engine.generate(some, 4, SAMPLING)
    assert (now.policy_version, ahead.policy_version) == (3, 3)
    assert same_rollout(now, ahead)
    assert served.engine.generate(some, 4, SAMPLING).policy_version == 5


def test_only_exactly_what_was_prefetched_is_given_for_it(served: Served) -> None:
    some, model = prompts(served.folder), CausalLM(str(served.folder)).build()
    served.sync(model, version=0)
    served.engine.prefetch(some, 2, SAMPLING)
    served.sync(model, version=1)
    others = [(some[:2], 2, SAMPLING), (some, 1, SAMPLING), (some, 2, SamplingConfig(max_tokens=8))]
    assert [served.engine.generate(*other).policy_version for other in others] == [1, 1, 1]
    assert served.engine.generate(some, 2, SAMPLING).policy_version == 0


def test_a_rollout_has_the_very_prompts_it_was_asked_for(served: Served) -> None:
    some = prompts(served.folder)
    served.engine.prefetch(prompts(served.folder), 2, SAMPLING)
    rollout = served.engine.generate(some, 2, SAMPLING)
    assert all(rollout.prompts[n] is some[n // 2] for n in range(6))


# --------------------------------------------------------------------------------------------------- failures


@pytest.fixture
def started(tiny_model: Path) -> Iterator[tuple[RolloutEngine, BaseProcess]]:
    """An engine and its process, which need not have the highest number: numbers begin anew."""
    before = set(multiprocessing.active_children())
    engine = Served(OverlappedEngine(InProcessEngine(str(tiny_model)), threads=1), tiny_model).engine
    [process] = set(multiprocessing.active_children()) - before
    yield engine, process
    engine.shutdown()


@pytest.fixture
def engine(started: tuple[RolloutEngine, BaseProcess]) -> RolloutEngine:
    return started[0]


def test_a_killed_process_is_reported_and_a_new_one_can_be_started(
    started: tuple[RolloutEngine, BaseProcess], tiny_model: Path
) -> None:
    engine, process = started
    engine.prefetch(prompts(tiny_model), 64, SamplingConfig(max_tokens=80))
    process.kill()
    with pytest.raises(EngineLostError, match=r"^OverlappedEngine: its process .* exit code -9") as end:
        engine.generate(prompts(tiny_model), 1, SAMPLING)
    assert "\n" not in str(end.value)
    engine.shutdown()
    Served(engine, tiny_model).sync(CausalLM(str(tiny_model)).build(), version=2)
    assert engine.generate(prompts(tiny_model), 1, SAMPLING).policy_version == 2


def test_what_fails_while_it_samples_ahead_is_raised_with_its_trace(
    engine: RolloutEngine, tiny_model: Path
) -> None:
    wrong = [replace(prompt, token_ids=[10**6]) for prompt in prompts(tiny_model)]
    engine.prefetch(wrong, 1, SAMPLING)
    with pytest.raises(RuntimeError, match=r"InProcessEngine failed:\n(?s:.*)IndexError"):
        engine.load_weights(iter([]), version=1)


def test_what_fails_amid_the_weights_is_raised_with_its_trace(
    engine: RolloutEngine, tiny_model: Path
) -> None:
    weights = full_weights(CausalLM(str(tiny_model)).build().language_model)
    with pytest.raises(RuntimeError, match=r"KeyError: 'model\.wrong'"):
        engine.load_weights((("model.wrong", tensor) for _, tensor in weights), version=1)


def test_shutting_down_does_not_wait_for_what_is_sampled_ahead(
    started: tuple[RolloutEngine, BaseProcess], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, process = started
    monkeypatch.setattr(overlapped, "SHUTDOWN_S", 600.0)
    engine.prefetch(prompts(tiny_model), 512, SamplingConfig(max_tokens=80))
    engine.shutdown()
    assert process.exitcode == -signal.SIGKILL


def test_what_the_inner_engine_refuses_arrives_as_its_sentence(fit: Fit, refused: Refused) -> None:
    huge = ("--data.engine.engine", "VLLMEngine", "--data.engine.engine.kv_cache_gib", "100000")
    assert "data.engine.engine.kv_cache_gib=100000 is more than" in refused(fit, *OVERLAPPED[:4], *huge)


@pytest.mark.parametrize(("key", "value"), [("max_staleness", -1), ("threads", 0)])
def test_a_bound_that_cannot_be_is_refused(fit: Fit, refused: Refused, key: str, value: int) -> None:
    assert f"data.engine.{key}={value}: expected" in refused(fit, *OVERLAPPED, f"--data.engine.{key}", value)


# ----------------------------------------------------------------------------------------------------- runs


def test_with_bound_0_a_run_is_the_synchronous_one(fit: Fit) -> None:
    alone, wrapped = fit(), fit(*OVERLAPPED, "--data.engine.max_staleness", "0")
    assert untimed(alone) == untimed(wrapped)
    assert (alone / "samples.jsonl").read_text() == (wrapped / "samples.jsonl").read_text()
    assert column(alone, "rollout/staleness") == [0, 0, 0]
    assert same(saved(alone)["state_dict"], saved(wrapped)["state_dict"])


AHEAD = (
    *(*OVERLAPPED, *CORRECTED, "--trainer.max_epochs", "4"),
    *("--data.minibatches", "1", "--data.update_epochs", "2"),  # or each rank would shuffle its own responses
)


@pytest.fixture(scope="module")
def ahead(fit: Fit) -> Path:
    """A run of two optimizer steps an iteration, with all of its checkpoints."""
    return fit(*AHEAD, *NO_VALIDATION, "--checkpoint.save_top_k", "-1")


def test_versions_lag_by_one_iteration_and_validation_changes_nothing(
    ahead: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    often = fit(*AHEAD)
    assert "model.correction" not in capsys.readouterr().out
    for folder in (ahead, often):
        assert column(folder, "rollout/policy_version") == [0, 0, 2, 4]
        assert column(folder, "rollout/staleness") == [0, 2, 2, 2]
        kept = saved(folder)["RolloutDataModule"]
        assert "rollouts" not in kept, "sampled for an iteration that the run has not"
    assert same(saved(ahead)["state_dict"], saved(often)["state_dict"])


@pytest.mark.parametrize(
    ("bound", "strategy"), [("1", "ddp"), pytest.param("0", "fsdp2", marks=pytest.mark.slow)]
)
def test_engines_of_two_ranks_sample_ahead_what_one_does(
    ahead: Path, fit: Fit, bound: str, strategy: str
) -> None:
    """With bound 0 what no engine samples ahead."""
    one = ahead if bound == "1" else fit(*AHEAD[len(OVERLAPPED) :], *NO_VALIDATION)
    ranks = ("--trainer.strategy", strategy, "--trainer.accumulate_grad_batches", "1")
    two = fit(*AHEAD, "--data.engine.max_staleness", bound, *ranks, *NO_VALIDATION, ranks=2)
    for here, there in zip(untimed(one), untimed(two), strict=True):
        assert here == pytest.approx(there, abs=1e-4, rel=1e-4)


def test_a_resumed_run_ends_like_one_never_stopped(fit: Fit, tmp_path: Path) -> None:
    run = (*OVERLAPPED, "--data.engine.max_staleness", "2", "--trainer.max_epochs", "5", *CORRECTED)
    whole = fit(*run, "--checkpoint.save_top_k", "-1")
    assert column(whole, "rollout/policy_version") == [0, 0, 0, 2, 4]
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    fit(*run, "--ckpt_path", killed / "checkpoints" / "iteration-0001.ckpt", root=killed)
    assert untimed(whole) == untimed(killed)
    assert (whole / "samples.jsonl").read_text() == (killed / "samples.jsonl").read_text()
    assert same(saved(whole)["state_dict"], saved(killed)["state_dict"])


@pytest.mark.slow
def test_a_run_whose_engine_is_killed_goes_on_from_its_checkpoint_as_if_it_had_not_been(
    fit: Fit, stopped: Callable[..., str], tmp_path: Path
) -> None:
    run, folder = (*OVERLAPPED, *CORRECTED), tmp_path / "run"
    said = stopped(fit, *run, *callback("helpers.faults.KillEngine"), root=folder)
    assert "data.engine: its process has ended with exit code -9 " in said
    assert said.endswith("; the same command continues the run from its last checkpoint")
    assert column(folder, "iteration") == [0, 1]
    fit(*run, "--ckpt_path", "last", root=folder)
    whole = fit(*run)
    assert untimed(whole) == untimed(folder)
    assert same(saved(whole)["state_dict"], saved(folder)["state_dict"])


def test_with_bound_0_what_a_checkpoint_has_sampled_ahead_is_forgotten(ahead: Path, fit: Fit) -> None:
    run = (*AHEAD, "--trainer.max_epochs", "2", *NO_VALIDATION, "--data.engine.max_staleness", "0")
    folder = fit(*run, "--ckpt_path", ahead / "checkpoints" / "iteration-0001.ckpt")
    assert column(folder, "rollout/staleness") == [0, 0]


def test_what_is_sampled_again_or_greedily_comes_from_the_newest_weights(fit: Fit) -> None:
    run = (*OVERLAPPED, *CORRECTED, *NO_VALIDATION)
    again = fit(*run, "--data.resample.rounds", "3")
    assert column(again, "rollout/staleness") == [0, 2, 2]
    assert max(column(again, "rollout/groups_replaced")) < 1
    assert column(fit(*run, "--model.advantage", "ReMax"), "rollout/staleness") == [0, 2, 2]


def test_old_weights_without_a_correction_are_warned_of(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As soon as settings are checked: `submit` does nothing else."""
    tiny = ("--config", str(CONFIG), "--pretrained", str(tiny_model))
    main(["submit", "--dry-run", "--nodes", "1", "--gpus-per-node", "0", *tiny, *OVERLAPPED])
    assert "set model.correction to ImportanceCorrection" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_samples_ahead(fit: Fit) -> None:
    inner = ("--data.engine.engine", "VLLMEngine", "--data.engine.engine.dtype", "float32")
    folder = fit(
        *OVERLAPPED[:4], *inner, "--data.engine.engine.kv_cache_gib", "0.1", *CORRECTED, *NO_VALIDATION
    )
    assert column(folder, "rollout/staleness") == [0, 2, 2]
    assert column(folder, "sync/logprob_mismatch")[0] < 1e-5
