"""What `plan` says: phases and their peaks by hand, advice, and the command."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import Refused
from helpers.repository import ROOT
from helpers.small_runs import FLOAT32, MIXED, TINY, TINY_PARAMETERS, model, small_run

from grpo_pl.__main__ import main
from grpo_pl.commands.plan.advice import warnings
from grpo_pl.commands.plan.estimate import (
    Passes,
    overhead_bytes,
    passes_of,
    peak,
    phases,
    resident_bytes,
    smallest_that_fits,
    update_bytes,
)
from grpo_pl.commands.plan.requirements import Model
from grpo_pl.rollout.engine import EngineMemory
from grpo_pl.system.memory import GIB

# --------------------------------------------------------------------------------------------------- phases


def test_on_a_cpu_everything_is_there_at_once() -> None:
    run = small_run()
    held = phases(run)
    assert resident_bytes(run) == overhead_bytes(run) + 16_000
    assert held["checkpoint"] == resident_bytes(run) + GIB + 2000
    assert held["update"] == held["checkpoint"] + sum(update_bytes(run).values())
    assert peak(run) == ("update", held["update"])


def test_an_engine_that_sleeps_is_away_while_the_policy_learns() -> None:
    run = small_run(on_cpu=False, engine=EngineMemory(weights=2000, cache=GIB, sampling=100, sleeps=True))
    held = phases(run)
    assert held["update"] == resident_bytes(run) + sum(update_bytes(run).values())
    assert held["sync"] == resident_bytes(run) + 2000
    assert held["generate"] == resident_bytes(run) + GIB + 2100
    assert peak(run)[0] == "generate"


def test_terms_that_are_measured_keep_two_gradients_aside(tiny_model: Path, tmp_path: Path) -> None:
    without, run = small_run(), small_run(measures_terms=True)
    gradient = run.models[0].gradient_bytes
    assert gradient > 0
    assert update_bytes(run) == update_bytes(without) | {"gradients aside": 2 * gradient}
    planned = plan(tmp_path, "--pretrained", tiny_model, "--gradient_terms.every", "3")
    assert planned["update"]["gradients aside"] == 2 * 4 * TINY_PARAMETERS
    assert plan(tmp_path, "--pretrained", tiny_model)["update"]["gradients aside"] == 0


def test_the_model_that_scores_anyones_responses_counts_beside_the_engine_that_validates(
    tiny_model: Path, tmp_path: Path
) -> None:
    engines = ("--data.engine", "DatasetEngine", "--data.val_engine", "InProcessEngine")
    planned = plan(tmp_path, "--pretrained", tiny_model, *engines)
    assert planned["engine"]["weights"] == 2 * 4 * TINY_PARAMETERS


def test_an_episode_counts_with_all_of_its_tokens(tiny_model: Path, tmp_path: Path) -> None:
    game = ("--data.environment", "GuessTheNumber", "--data.episodes.tokens", 100)
    planned = plan(tmp_path, "--pretrained", tiny_model, *game)
    longer = plan(tmp_path, "--pretrained", tiny_model, "--data.sampling.max_tokens", 100)
    assert planned["tokens_at_most"]["generated"] == 16 * 100
    assert planned["phases"] == longer["phases"]


def test_the_smallest_number_of_micro_batches_that_fits() -> None:
    run = small_run(minibatches=1)
    needed = [peak(replace(run, micro_batches=k))[1] for k in range(1, 9)]
    assert sorted(needed, reverse=True) == needed
    assert smallest_that_fits(replace(run, free_bytes=needed[0])) == 1
    assert smallest_that_fits(replace(run, free_bytes=needed[0] - 1)) == 2
    assert smallest_that_fits(replace(run, free_bytes=needed[-1] - 1)) is None


def test_the_first_of_the_steps_is_not_scored_unless_something_asks_for_it() -> None:
    run = small_run(minibatches=4, update_epochs=1, scores_first=False)
    assert passes_of(run, model()).score == 0.75
    assert passes_of(replace(run, minibatches=1), model()).score == 0
    assert passes_of(replace(run, scores_first=True), model()).score == 1
    assert passes_of(replace(run, update_epochs=2), model()).score == 1
    assert passes_of(run, model(gradient_bytes=0)).score == 1


def test_checkpointing_repeats_the_forwards_of_updates() -> None:
    run = small_run(update_epochs=3)
    trained = model(network=replace(FLOAT32, checkpointing=True))
    assert (passes_of(run, trained).score, passes_of(run, trained).update) == (1, 6)
    frozen = passes_of(run, model(gradient_bytes=0))
    assert (frozen.score, frozen.update, frozen.backward) == (1, 0, 0)


# ------------------------------------------------------------------------------------------------- warnings


def test_nothing_is_said_of_a_run_that_is_right() -> None:
    assert warnings(small_run()) == []


def with_policy(**changes: object) -> tuple[Model, ...]:
    network = replace(MIXED, attention="tree")
    return (model(network=replace(network, **changes)),)  # type: ignore[arg-type]


WIDE = replace(TINY, layers=400, vocabulary=320)
ADVICE: dict[str, tuple[dict[str, object], str]] = {
    "memory": ({"free_bytes": GIB}, "no trainer.accumulate_grad_batches fits"),
    "padding": (
        {"models": with_policy(attention="sdpa")},
        "model.policy.attention=sdpa computes the padding, .* set it to null",
    ),
    "groups": ({"keep_groups": False}, "data.keep_groups=false .* set it to true"),
    "an engine too wide": (
        {"engine": EngineMemory(max_sequences=65)},
        "data.engine.max_sequences=65 is more than the 64",
    ),
    "no clip": ({"minibatches": 1}, "data.minibatches=1 .* ClippedSurrogate never clips: raise"),
    "a small cache": (
        {"engine": EngineMemory(cache=GIB, cache_needed=3 * GIB)},
        "data.engine.kv_cache_gib=1 is less than the 3 GiB .* set it to 3.0",
    ),
    "a large cache": (
        {"engine": EngineMemory(cache=3 * GIB, cache_needed=GIB)},
        "data.engine.kv_cache_gib=3 is more than the 1 GiB .* set it to 1.0",
    ),
    "validation": (
        {"val_prompts": 40, "val_cache_bytes": 2 * GIB},
        "data.val_prompts_per_batch=40 may fill 2 GiB .* set it to 20",
    ),
    "reference": ({"idle_reference": True}, "model.kl=null, .* set model.kl to KLInLoss"),
    "activations": (
        {"models": with_policy(architecture=replace(TINY, layers=1500)), "response_tokens": 25},
        "activations .* raise trainer.accumulate_grad_batches, or set model.policy.gradient_checkpointing",
    ),
    "logits": (
        {"models": with_policy(architecture=replace(TINY, vocabulary=150_000), chunk_tokens=4096)},
        "model.policy.chunk_tokens=4096 .* set it lower",
    ),
    "sleep": (
        {"on_cpu": False, "engine": EngineMemory(weights=GIB, cache=GIB, cache_needed=GIB)},
        "data.engine.sleep=false keeps 2.0 GiB .* set it to true",
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_what_is_likely_not_meant_is_said_with_the_key_and_the_fix(name: str) -> None:
    changes, sentence = ADVICE[name]
    said_of_it = warnings(small_run(**changes))
    assert len(said_of_it) == 1
    assert re.search(sentence, said_of_it[0])


def test_memory_that_another_number_of_micro_batches_would_fit() -> None:
    run = small_run(minibatches=1, loss_name=None)
    least = peak(replace(run, micro_batches=8))[1]
    assert "set trainer.accumulate_grad_batches to 8" in warnings(replace(run, free_bytes=least))[0]


# ---------------------------------------------------------------------------------------------- the command


def plan(tmp_path: Path, *arguments: object) -> dict:
    out = tmp_path / "plan.json"
    words = ["plan", "--config", str(ROOT / "configs" / "tiny.yaml"), "--out", str(out)]
    main([*words, "--trainer.default_root_dir", str(tmp_path / "run"), *map(str, arguments)])
    assert not (tmp_path / "run").exists()
    return json.loads(out.read_text())


def by_name(said_of_it: dict) -> dict:
    return {each["name"]: each for each in said_of_it["models"]}


def test_the_tiny_run_computed_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    planned = plan(tmp_path, "--pretrained", tiny_model)
    weights = 4 * TINY_PARAMETERS
    assert by_name(planned) == {
        "policy": {
            "name": "policy",
            "parameters": TINY_PARAMETERS,
            "parameter_bytes": weights,
            "gradient_bytes": weights,
            "optimizer_bytes": 2 * weights,
        },
        "reference": {
            "name": "reference",
            "parameters": TINY_PARAMETERS,
            "parameter_bytes": weights,
            "gradient_bytes": 0,
            "optimizer_bytes": 0,
        },
    }
    assert set(planned["phases"]) == {"engine start", "sync", "generate", "score", "update", "checkpoint"}
    assert planned["peak_bytes"] == max(planned["phases"].values()) == planned["phases"]["update"]
    assert planned["largest_micro_batch"] == {"sequences": 8, "accumulate_grad_batches": 1}
    assert planned["tokens_at_most"]["generated"] == 16 * 16
    assert planned["forwards"][0] == {"model": "policy", "score": 0.5, "update": 1, "backward": 1}


def test_a_critic_on_the_policys_trunk_and_adapters_share_its_weights(
    tiny_model: Path, tmp_path: Path
) -> None:
    ppo = ROOT / "configs" / "ppo.yaml"
    planned = plan(tmp_path, "--pretrained", tiny_model, "--config", ppo, "--model.critic", "TrunkValueHead")
    assert by_name(planned)["critic"]["parameters"] == 65
    pytest.importorskip("peft")
    lora = ("--model.policy", "LoRA", "--model.policy.r", "4", "--model.reference", "AdapterOff")
    planned = by_name(plan(tmp_path, "--pretrained", tiny_model, *lora))
    adapters = 2 * 4 * (2 * 128 + 2 * 96 + 3 * 192)
    assert planned["policy"]["gradient_bytes"] == 4 * adapters
    assert planned["policy"]["parameters"] == TINY_PARAMETERS + adapters
    assert "reference" not in planned or planned["reference"]["parameters"] == 0


def test_a_critic_and_a_reward_model_of_their_own(
    tiny_model: Path, outcome_model: Path, tmp_path: Path
) -> None:
    rm = ("--model.rewards.rm", "OutcomeRewardModel", "--model.rewards.rm.pretrained", outcome_model)
    ppo = ("--config", ROOT / "configs" / "ppo.yaml", "--pretrained", tiny_model)
    planned = by_name(plan(tmp_path, *ppo, *rm))
    assert planned["critic"]["parameters"] == TINY_PARAMETERS + 65
    assert planned["critic"]["optimizer_bytes"] == 8 * (TINY_PARAMETERS + 65)
    assert planned["rewards.rm"]["parameters"] == TINY_PARAMETERS + 64
    assert planned["rewards.rm"]["gradient_bytes"] == 0


@pytest.mark.usefixtures("smollm")
def test_the_quickstart_is_planned_without_vllm_and_weights(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    code = (
        "import sys; from grpo_pl.__main__ import main\n"
        f"main(['plan', '--config', 'configs/quickstart.yaml', '--out', '{out}'])\n"
        "assert 'vllm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"update .*# peak", done.stdout)
    planned = json.loads(out.read_text())
    assert planned["peak_phase"] == "update"
    assert by_name(planned)["policy"]["parameters"] == 134_515_008
    assert "model.kl=null" in planned["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--data.minibatches 3", "data.minibatches=3 does not divide the 16 responses"),
        ("--data.max_prompt_tokens 250", "context of 256: make data.max_prompt_tokens"),
        ("--data.group_sizes 4", "there is no option data.group_sizes. Did you mean data.group_size?"),
        ("--pretrained /no/such/model", "/no/such/model is not a folder"),
    ],
)
def test_what_fit_refuses_is_refused(
    arguments: str, sentence: str, tiny_model: Path, tmp_path: Path, refused: Refused
) -> None:
    assert sentence in refused(plan, tmp_path, "--pretrained", tiny_model, *arguments.split())


def test_a_teacher_over_the_whole_vocabulary_reads_in_the_update_and_not_before() -> None:
    models = (model(), model(name="reference", gradient_bytes=0, optimizer_bytes=0))
    before, taught = small_run(models=models), small_run(models=models, teacher_copies=5, update_epochs=2)
    assert passes_of(before, models[1]) == Passes(model="reference", score=1.0, update=0, backward=0)
    assert passes_of(taught, models[1]) == Passes(model="reference", score=0.0, update=2, backward=0)
    one, more = (update_bytes(replace(taught, teacher_copies=n))["teacher"] for n in (5, 6))
    assert more - one == 4 * TINY.vocabulary * FLOAT32.chunk_tokens
    assert "teacher" not in update_bytes(before)


def test_a_teacher_counts_as_a_model_without_any_kl_or_reward(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--config", str(ROOT / "configs" / "tiny.yaml"), "--pretrained", str(tiny_model)]
    taught = ["--model.kl", "null", "--model.advantage", "Distillation", "--model.rewards", '{"*": null}']
    main([*words, *taught])
    assert re.search(r"│ reference +│", capsys.readouterr().out)
