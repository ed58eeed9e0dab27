"""doctor finds nothing wrong where nothing is, and what is wrong where something is."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import broken_engines
from helpers.commands import Refused, command
from helpers.playing import talkative
from helpers.repository import ROOT

from grpo_pl.__main__ import main
from grpo_pl.commands.doctor.engine import check_engine
from grpo_pl.commands.doctor.findings import Finding
from grpo_pl.config.cli import configure
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.module import PolicyOptimization
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.replay import ReplayEngine
from grpo_pl.rollout.vllm import VLLMEngine

CONFIG = ROOT / "configs" / "tiny.yaml"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Faster for a model this small, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def doctor(tmp_path: Path, *arguments: object) -> tuple[int, dict[str, dict[str, dict[str, Any]]]]:
    """The exit code, and theme -> check -> what was found."""
    out = tmp_path / "doctor.json"
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--out", str(out), *map(str, arguments)])
    found = json.loads(out.read_text())["themes"]
    assert isinstance(end.value.code, int)
    return end.value.code, {theme: {f["check"]: f for f in findings} for theme, findings in found.items()}


def on_tiny(tmp_path: Path, model: Path, *arguments: object) -> tuple[int, Any]:
    settings = ("--config", CONFIG, "--pretrained", model, "--trainer.default_root_dir", tmp_path / "run")
    return doctor(tmp_path, *settings, *arguments)


def examined(engine: RolloutEngine, model: Path, temperature: float = 0.7) -> dict[str, Finding]:
    """What is found of an engine, by the checks' names."""
    cli = configure(["--config", str(CONFIG), "--pretrained", str(model)])
    module, data = cli.model, cli.datamodule
    assert isinstance(module, PolicyOptimization)
    assert isinstance(data, RolloutDataModule)
    data.engine, data.sampling = engine, SamplingConfig(max_tokens=16, temperature=temperature)
    return {finding.check: finding for finding in check_engine(cli.trainer, module, data)}


# --------------------------------------------------------------------------------------------- the command


def test_nothing_is_wrong_with_the_tiny_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = on_tiny(tmp_path, tiny_model)
    assert code == 0
    assert list(found) == ["installation", "machine", "components", "model", "data", "run", "engine"]
    configured = [f for theme, by_check in found.items() if theme != "machine" for f in by_check.values()]
    assert {finding["verdict"] for finding in configured} == {"ok"}
    for check in ("loaded", "synced"):
        assert found["engine"][check]["numbers"]["mean"] < 1e-5
    printed = capsys.readouterr().out
    assert "engine - trainer" in printed
    assert "data.train: the first prompt as the model reads it" in printed
    assert not (tmp_path / "run").exists()


def test_without_a_config_it_looks_at_machine_and_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = doctor(tmp_path)
    assert code == 0
    assert list(found) == ["installation", "machine"]
    assert "not looked at: components, model, data, run, engine" in capsys.readouterr().out


def test_a_model_without_a_chat_template_is_a_problem_and_nothing_is_started(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    for file in (base / "chat_template.jinja", base / "tokenizer_config.json"):
        if file.suffix == ".jinja":
            file.unlink()
        else:
            settings = json.loads(file.read_text())
            settings.pop("chat_template", None)
            file.write_text(json.dumps(settings))
    code, found = on_tiny(tmp_path, base)
    assert code == 1
    assert "no chat template" in found["model"]["template"]["found"]
    assert "--data.format.use_chat_template false" in found["model"]["template"]["fix"]
    assert "engine" not in found


def test_checkpoints_that_the_disk_cannot_hold_are_a_problem(tiny_model: Path, tmp_path: Path) -> None:
    code, found = on_tiny(
        tmp_path, tiny_model, "--checkpoint.save_top_k", "-1", "--trainer.max_epochs", 10**12
    )
    assert code == 1
    assert found["run"]["disk"]["verdict"] == "problem"
    assert "--checkpoint.save_top_k 1" in found["run"]["disk"]["fix"]
    assert "engine" not in found


def test_an_episode_is_played(tiny_model: Path, tmp_path: Path) -> None:
    model = talkative(tiny_model, tmp_path / "talkative")
    game = ("--data.environment", "helpers.episodes.Greets", "--data.episodes.tokens", 100)
    code, found = on_tiny(tmp_path, model, *game)
    assert code == 0
    assert found["model"]["dialogue"]["found"] == "earlier turns are left as they are"
    assert found["engine"]["episode"]["numbers"]["turns"] > 0
    assert "; it ended with " in found["engine"]["episode"]["found"]


@pytest.mark.parametrize(
    ("environment", "theme", "check", "fix"),
    [
        ("Calculator", "model", "dialogue", "set data.episodes.call_format to Tag"),
        ("helpers.episodes.HoldsAFile", "engine", "episode", "keep plain data in its constructor"),
    ],
)
def test_an_environment_that_cannot_be_played_is_a_problem(
    environment: str, theme: str, check: str, fix: str, tiny_model: Path, tmp_path: Path
) -> None:
    game = ("--data.environment", environment, "--data.episodes.tokens", 100)
    code, found = on_tiny(tmp_path, tiny_model, *game)
    assert code == 1
    assert found[theme][check]["verdict"] == "problem"
    assert fix in found[theme][check]["fix"]


def test_the_engine_can_be_left_out(tiny_model: Path, tmp_path: Path) -> None:
    code, found = on_tiny(tmp_path, tiny_model, "--engine", "false")
    assert code == 0
    assert "run" in found
    assert "engine" not in found


def test_gpus_that_are_not_there_are_a_problem_before_anything_is_made(
    tiny_model: Path, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there are some")
    code, found = on_tiny(tmp_path, tiny_model, "--trainer.accelerator", "gpu", "--trainer.devices", 8)
    assert code == 1
    assert found["components"]["ranks"]["found"] == "trainer asks for 8 GPUs of 0"
    assert "model" not in found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--data.seeed 1", "there is no option data.seeed. Did you mean data.seed?"),
        ("--data.minibatches 3", "data.minibatches=3 does not divide the 16 responses"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: str, sentence: str, tiny_model: Path, refused: Refused
) -> None:
    words = ("doctor", "--config", CONFIG, "--pretrained", tiny_model, *arguments.split())
    assert sentence in refused(command, *words)


@pytest.mark.parametrize(
    "arguments",
    ["doctor --engine maybe", "doctor --out /no/such/folder/file.json", "--config {config} doctor"],
)
def test_its_own_options_are_checked_before_anything_else(arguments: str, refused: Refused) -> None:
    assert "doctor" in refused(command, *arguments.format(config=CONFIG).split())


def test_help_lists_it_beside_fit_and_plan(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    listed = capsys.readouterr().out
    assert {"fit", "plan", "submit", "check-invariance", "doctor"} <= set(listed.split())


# ----------------------------------------------------------------------------------------- broken engines


def cause_of(finding: Finding) -> str:
    """What stands behind the numbers."""
    return finding.found.partition("above 0.2")[2]


def test_an_engine_that_keeps_its_weights_is_a_sync_that_replaced_none(tiny_model: Path) -> None:
    found = examined(broken_engines.Forgetful(str(tiny_model)), tiny_model)
    assert found["loaded"].verdict == "ok"
    assert found["synced"].verdict == "problem"
    assert found["perturbation"].numbers["stale"] == pytest.approx(found["synced"].numbers["mean"], rel=1e-3)
    assert cause_of(found["synced"]).startswith(": sync: they are those of the weights before")


def test_a_tied_head_that_stays_behind_is_named(tiny_model: Path) -> None:
    found = examined(broken_engines.StaleHead(str(tiny_model)), tiny_model)
    assert found["loaded"].verdict == "ok"
    assert cause_of(found["synced"]).startswith(": sync: the LM head is that from before")
    assert "repack" in found["synced"].fix


def test_another_temperature_is_named(tiny_model: Path) -> None:
    found = examined(broken_engines.FixedTemperature(str(tiny_model)), tiny_model)
    for check in ("loaded", "synced"):
        assert found[check].verdict == "problem"
        assert cause_of(found[check]) == (
            ": temperature: they are those at temperature 1, and data.sampling.temperature is 0.7"
        )


def test_top_p_is_named(tiny_model: Path) -> None:
    found = examined(broken_engines.TopP(str(tiny_model)), tiny_model)
    assert found["loaded"].verdict == "problem"
    assert cause_of(found["loaded"]) == ": top-p: the mass that top-p 0.9 cuts off is missing"


def test_a_bos_that_the_trainer_does_not_read_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with_bos = tmp_path / "bos"
    shutil.copytree(tiny_model, with_bos)
    file = with_bos / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token": "<|endoftext|>"}))
    found = examined(broken_engines.AddsBos(str(with_bos)), with_bos)
    assert cause_of(found["loaded"]) == ": template: the engine reads one BOS token more than the trainer"


def test_an_engine_that_fails_is_a_problem_that_names_the_stage(tiny_model: Path) -> None:
    found = examined(broken_engines.Fails(str(tiny_model)), tiny_model)
    assert found["loaded"].verdict == "ok"
    assert found["engine"].verdict == "problem"
    assert found["engine"].found == "syncing perturbed weights failed: 'model.no_such_layer.weight'"


def test_rounding_in_bfloat16_is_no_problem(tiny_model: Path) -> None:
    found = examined(InProcessEngine(str(tiny_model), dtype="bfloat16"), tiny_model)
    assert found["rounding"].numbers["engine"] > 1e-3
    for check in ("loaded", "synced"):
        assert found[check].numbers["mean"] > 1e-3
        assert found[check].verdict == "ok"


def test_a_stale_head_is_found_through_the_rounding_of_bfloat16(tiny_model: Path) -> None:
    found = examined(broken_engines.StaleHead(str(tiny_model), dtype="bfloat16"), tiny_model)
    assert cause_of(found["synced"]).startswith(": sync: the LM head is that from before")


def test_an_engine_that_answers_from_a_file_is_not_compared(tiny_model: Path) -> None:
    found = examined(ReplayEngine("rollouts.parquet", str(tiny_model)), tiny_model)
    assert found["engine"].found == "not compared: ReplayEngine has its responses already"


@pytest.mark.vllm
def test_vllms_logprobs_from_before_the_temperature_are_found_and_its_sync_is_right(
    tiny_model: Path,
) -> None:
    raw = {"logprobs_mode": "raw_logprobs"}
    found = examined(VLLMEngine(str(tiny_model), "float32", 0.1, engine_args=raw), tiny_model)
    for check in ("loaded", "synced"):
        assert cause_of(found[check]) == (
            ": temperature: they are those at temperature 1, and data.sampling.temperature is 0.7"
        )
        assert found[check].numbers["rest"] < 1e-4
    assert "logprobs_mode" in found["synced"].fix
    assert found["tokens"].verdict == "ok"
