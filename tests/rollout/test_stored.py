"""A rollout that was sampled is learned from, whatever the engine would say now."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.commands import Fit
from helpers.run_results import rows, untimed
from helpers.unsteady import Unsteady

from grpo_pl.models.loading import load_language_model
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.overlapped import OverlappedEngine
from grpo_pl.rollout.replay import ReplayEngine
from grpo_pl.rollout.stored import StoredRollouts, forget, forget_all, stored
from grpo_pl.types import Prompt, Rollout

SAMPLING = SamplingConfig(max_tokens=6)
PROMPTS = [Prompt(token_ids=[40 + n, 50], text="?", answer="", seed=n) for n in range(2)]


@pytest.fixture
def engine(tiny_model: Path, tmp_path: Path) -> Iterator[StoredRollouts]:
    engine = StoredRollouts(Unsteady(str(tiny_model)), tmp_path / "rollouts")
    engine.start(max_sequence_tokens=16, max_sequences=4, device=torch.device("cpu"))
    yield engine
    engine.shutdown()


def load(engine: StoredRollouts, tiny_model: Path, version: int, nudge: float = 0.0) -> None:
    weights = dict(load_language_model(str(tiny_model), "float32").named_parameters())
    next(iter(weights.values())).data[0, 0] += nudge
    engine.load_weights(iter(weights.items()), version)


def assert_same(a: Rollout, b: Rollout) -> None:
    for field in fields(Rollout):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        assert same, field.name


def test_the_same_request_under_the_same_weights_gets_the_same_to_the_last_bit(
    engine: StoredRollouts, tiny_model: Path
) -> None:
    load(engine, tiny_model, version=4)
    first, greedy = (engine.generate(PROMPTS, 2, s) for s in (SAMPLING, SamplingConfig(6, 0.0)))
    load(engine, tiny_model, version=4)
    assert_same(engine.generate(PROMPTS, 2, SAMPLING), first)
    assert_same(engine.generate(PROMPTS, 2, SamplingConfig(6, 0.0)), greedy)
    assert first.metrics == {"rollout/retried": 0.1}


@pytest.mark.parametrize("what", ["weights", "a prompt", "the group size", "the temperature"])
def test_anything_else_is_sampled(engine: StoredRollouts, tiny_model: Path, what: str) -> None:
    load(engine, tiny_model, version=4)
    engine.generate(PROMPTS, 2, SAMPLING)
    load(engine, tiny_model, version=4, nudge=1e-6 if what == "weights" else 0.0)
    engine.generate(
        PROMPTS[::-1] if what == "a prompt" else PROMPTS,
        3 if what == "the group size" else 2,
        SamplingConfig(6, 0.5) if what == "the temperature" else SAMPLING,
    )
    assert len(list(engine.folder.iterdir())) == 2


def test_a_torn_file_is_sampled_again(engine: StoredRollouts, tiny_model: Path) -> None:
    load(engine, tiny_model, version=4)
    engine.generate(PROMPTS, 2, SAMPLING)
    (path,) = engine.folder.iterdir()
    whole = path.read_bytes()
    for content in (whole[:200], b"", b"\x80\x04junk", whole[:-1], whole[:-1] + b"?"):
        path.write_bytes(content)
        again = engine.generate(PROMPTS, 2, SAMPLING)
        assert_same(engine.generate(PROMPTS, 2, SAMPLING), again)


def test_what_no_checkpoint_needs_is_forgotten(engine: StoredRollouts, tiny_model: Path) -> None:
    for version in (2, 4, 100_000_000):
        load(engine, tiny_model, version)
        engine.generate(PROMPTS, 2, SAMPLING)
    forget(engine.folder, before=4)
    left = sorted(path.name.partition("-")[0] for path in engine.folder.iterdir())
    assert left == ["00000004", "100000000"]
    (engine.folder / "iteration-0001.parquet").touch()
    forget_all(engine.folder)
    assert [path.name for path in engine.folder.iterdir()] == ["iteration-0001.parquet"]
    (engine.folder / "iteration-0001.parquet").unlink()
    forget_all(engine.folder)
    assert not engine.folder.exists()


def test_an_engine_that_samples_ahead_stores_in_its_own_process(tmp_path: Path) -> None:
    ahead = stored(OverlappedEngine(Unsteady()), tmp_path)
    assert isinstance(ahead, OverlappedEngine)
    assert isinstance(ahead.engine, StoredRollouts)
    assert stored(ahead, tmp_path) is ahead
    assert isinstance(ahead.engine.engine, Unsteady), "it is wrapped once"
    assert isinstance(stored(ReplayEngine("file"), tmp_path), ReplayEngine)


RESPONSES = 16
asked: list[int] = []


def interrupted_in_iteration_4(*, response: str, **_: object) -> float:
    """A reward that stops the run from inside, as Ctrl-C does, the first time that it comes so far."""
    asked.append(1)
    if len(asked) == 3 * RESPONSES + 1:
        raise KeyboardInterrupt
    return float(any(character.isdigit() for character in response))


def test_a_run_whose_engine_never_says_the_same_goes_on_as_it_was(fit: Fit, tmp_path: Path) -> None:
    function = {"class_path": "Function", "init_args": {"function": f"{__name__}.interrupted_in_iteration_4"}}
    run = (
        *("--data.engine", "helpers.unsteady.Unsteady", "--model.rewards", str({"digit": function})),
        *("--trainer.max_epochs", "4", "--checkpoint.every_n_epochs", "2", "--samples.every", "0"),
        *("--data.keep_rollouts", "true"),
    )
    asked.clear()
    folder = tmp_path / "run"
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(*run, root=folder)
    before, samples = untimed(folder), (folder / "samples.jsonl").read_bytes()
    kept = {path: path.read_bytes() for path in (folder / "rollouts").glob("*.parquet")}
    assert sorted(path.name for path in kept) == [f"iteration-000{n}.parquet" for n in (1, 2, 3)]
    (folder / "rollouts" / "iteration-0009.parquet").write_bytes(b"of a future that is no more")
    assert [row["iteration"] for row in rows(folder)] == [0, 1, 2, 3]
    fit(*run, root=folder)
    assert len(asked) == 3 * RESPONSES + 1 + 2 * RESPONSES, "iterations 3 and 4 were rewarded again"
    assert untimed(folder)[:4] == before
    assert (folder / "samples.jsonl").read_bytes().startswith(samples)
    assert [row["iteration"] for row in rows(folder)] == [0, 1, 2, 3, 4]
    after = sorted((folder / "rollouts").iterdir())
    assert [path.name for path in after] == [f"iteration-000{n}.parquet" for n in (1, 2, 3, 4)]
    assert {path: path.read_bytes() for path in after[:3]} == kept
