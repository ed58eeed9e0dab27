"""The type that products are computed in: by hand, measured here, and settled in a run's config."""

import os
import platform
from pathlib import Path

import pytest
import torch
import yaml
from helpers.commands import Fit, Refused, process
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION
from jsonargparse import Namespace

from grpo_pl.__main__ import main
from grpo_pl.config.open_types import Trainer, settle
from grpo_pl.rollout.vllm import with_vllm
from grpo_pl.runs.folder import different
from grpo_pl.system.precision import PRECISIONS, Rates, chosen_dtype, device_here, measured_rates

HERE = measured_rates(device_here().type)
SLOWER = "bfloat16" if HERE.fitting == "float32" else "float32"
OPEN = ("--trainer.precision", "auto", "--data.engine.dtype", "auto")


@pytest.mark.parametrize(
    ("device", "float32", "bfloat16", "float16", "fitting"),
    [
        ("cpu", 100, 210, 15, "bfloat16"),  # AVX-512-BF16
        ("cpu", 100, 37, 15, "float32"),  # AVX-512 alone
        ("cpu", 28, 0.4, 3, "float32"),  # AVX2 alone
        ("cpu", 100, 110, 300, "float32"),  # not worth the rounding; a CPU's float16 never counts
        ("cuda", 50_000, 700_000, 710_000, "bfloat16"),
        ("cuda", 8_000, 9_000, 60_000, "float16"),  # bfloat16 is computed as float32
        ("cuda", 8_000, 11_000, 60_000, "float16"),
        ("cuda", 10_000, 9_000, 150, "float32"),
    ],
)
def test_the_fitting_type_by_hand(
    device: str, float32: float, bfloat16: float, float16: float, fitting: str
) -> None:
    rates = Rates(device, float(float32), float(bfloat16), float(float16))
    assert rates.fitting == fitting
    assert rates.reason.startswith(f"{fitting}: this ")


def test_slower_is_how_many_times_as_long_products_take() -> None:
    rates = Rates("cpu", 100.0, 20.0, 10.0)
    assert [rates.slower(dtype) for dtype in ("float32", "bfloat16", "float16")] == [1.0, 5.0, 10.0]


def test_measuring_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    assert measured_rates.__wrapped__("cpu").float32 > 0
    assert torch.get_num_threads() == before


def test_what_is_set_stays_and_what_is_open_is_measured() -> None:
    assert chosen_dtype("float16") == "float16"
    assert chosen_dtype("auto", torch.device("cpu")) == measured_rates("cpu").fitting
    assert Trainer(precision="auto", accelerator="auto").precision == PRECISIONS[HERE.fitting]
    assert Trainer(precision="32-true", accelerator="cpu").precision == "32-true"
    assert Trainer(accelerator="cpu").precision == "32-true"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is x86's")
def test_a_cpu_with_avx2_alone_is_known_by_its_products() -> None:
    """Imitated: oneDNN and ATen take no wider instructions; float32 products are MKL's, which never asks."""
    program = "from grpo_pl.system.precision import measured_rates; print(measured_rates('cpu').fitting)"
    done = process("-c", program, ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2")
    assert done.stdout.split() == ["float32"], done.stderr


@pytest.mark.vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM has linear layers of its own on a CPU only")
def test_the_engines_layers_prefer_the_type_that_the_trainers_do() -> None:
    assert measured_rates("cpu", with_vllm).fitting == measured_rates("cpu").fitting


def settled(folder: Path) -> tuple[str, str]:
    """The Trainer's precision and the engine's type in a run's config."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return config["trainer"]["precision"], config["data"]["engine"]["init_args"]["dtype"]


def test_a_run_says_what_open_types_became_and_writes_it_into_its_config(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(*OPEN, *NO_VALIDATION, "--trainer.max_epochs", 1)
    assert settled(folder) == (PRECISIONS[HERE.fitting], HERE.fitting)
    where = f"(trainer.precision {PRECISIONS[HERE.fitting]}, data.engine.dtype {HERE.fitting})"
    assert f"Computes in {HERE.reason} {where}." in capsys.readouterr().out


def test_an_open_engine_computes_in_what_the_trainer_is_set_to(fit: Fit) -> None:
    arguments = ("--trainer.precision", PRECISIONS[SLOWER], "--data.engine.dtype", "auto")
    folder = fit(*arguments, *NO_VALIDATION, "--trainer.max_epochs", 1)
    assert settled(folder) == (PRECISIONS[SLOWER], SLOWER)


def test_what_is_set_explicitly_is_done_with_a_warning_of_the_factor(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--trainer.precision", PRECISIONS[SLOWER], *NO_VALIDATION, "--trainer.max_epochs", 1)
    said = capsys.readouterr().out
    assert f"! trainer.precision={PRECISIONS[SLOWER]}: here products take " in said
    assert f"times as long as in {HERE.fitting}, which auto takes." in said


def test_a_run_that_goes_on_keeps_its_types_and_says_what_they_cost_here(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    explicit = ("--trainer.precision", PRECISIONS[SLOWER], "--data.engine.dtype", SLOWER)
    folder = fit(*explicit, *NO_VALIDATION, "--trainer.max_epochs", 1)
    (folder / "ended.json").unlink()  # as if another machine had been stopped there
    capsys.readouterr()
    fit(*OPEN, *NO_VALIDATION, "--trainer.max_epochs", 2, root=folder)
    said = capsys.readouterr().out
    assert settled(folder) == (PRECISIONS[SLOWER], SLOWER)
    assert f"! Computes in {SLOWER}, as the run began" in said
    assert f"times as long as in {HERE.fitting}; --resume never begins anew in that." in said
    assert "goes on from" in said


def test_only_types_that_are_open_are_as_the_run_began() -> None:
    began = {"trainer": {"precision": "32-true", "accelerator": "cpu", "strategy": "ddp"}, "dtype": {"x": 1}}
    now = {"trainer": {"precision": "auto", "accelerator": "auto", "strategy": "auto"}, "dtype": {"x": 1}}
    assert sorted(different(began, now)) == ["trainer.accelerator", "trainer.strategy"]


def test_a_new_run_in_the_folder_of_one_with_other_settings_computes_in_what_fits(fit: Fit) -> None:
    explicit = ("--trainer.precision", PRECISIONS[SLOWER], "--data.engine.dtype", SLOWER)
    folder = fit(*explicit, *NO_VALIDATION, "--trainer.max_epochs", 1)
    (folder / "ended.json").unlink()
    fit(*OPEN, *NO_VALIDATION, "--trainer.max_epochs", 1, "--data.seed", 5, root=folder)
    assert settled(folder) == (PRECISIONS[HERE.fitting], HERE.fitting)


def test_ranks_on_machines_that_differ_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """As if `auto` had become another precision on the second machine."""
    from helpers.rank_runs import run_each

    config = ["--config", str(ROOT / "configs" / "tiny.yaml"), "--pretrained", str(tiny_model)]
    run = [*config, "--trainer.devices", "2", "--trainer.default_root_dir", str(tmp_path / "run")]
    codes, said = run_each(
        [[*run, "--trainer.precision", one] for one in ("32-true", "bf16-mixed")], tmp_path
    )
    assert 2 in codes
    assert "(rank 1 has bf16-mixed, rank 0 32-true): set it to 32-true or bf16-mixed" in said


def test_submit_leaves_the_decision_to_the_machine_that_runs_the_job(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    config = str(ROOT / "configs" / "tiny.yaml")
    job = ["submit", "--nodes", "1", "--gpus-per-node", "0", "--config", config, *OPEN]
    main([*job, "--pretrained", str(tiny_model), "--trainer.default_root_dir", str(tmp_path / "run")])
    assert settled(tmp_path / "run") == ("auto", "auto")


def test_every_type_that_is_open_becomes_the_trainers_reward_models_too() -> None:
    reward = Namespace(class_path="OutcomeRewardModel", init_args=Namespace(dtype="auto"))
    inner = Namespace(class_path="VLLMEngine", init_args=Namespace(dtype="auto"))
    engine = Namespace(class_path="OverlappedEngine", init_args=Namespace(engine=inner))
    trainer = Namespace(precision="16-mixed", accelerator="cpu", strategy="auto")
    config = Namespace(
        trainer=trainer, model=Namespace(rewards={"rm": reward}), data=Namespace(engine=engine)
    )
    said = settle(config, {})
    assert (reward.init_args.dtype, inner.init_args.dtype) == ("float16", "float16")
    assert "data.engine.engine.dtype float16" in said[-1]
    assert "model.rewards.rm.dtype float16" in said[-1]


def test_the_type_of_a_sharding_strategy_is_the_trainers() -> None:
    strategy = Namespace(class_path="FSDP2Strategy", init_args=Namespace(dtype="bfloat16"))
    engine = Namespace(class_path="VLLMEngine", init_args=Namespace(dtype="auto"))
    trainer = Namespace(precision="32-true", accelerator="cpu", strategy=strategy)
    settle(Namespace(trainer=trainer, data=Namespace(engine=engine)), {})
    assert engine.init_args.dtype == "bfloat16"


def test_a_precision_that_does_not_exist_is_refused_with_those_that_do(fit: Fit, refused: Refused) -> None:
    said = refused(fit, "--trainer.precision", "bf16-mixd")
    assert "trainer.precision: expected one of" in said
    assert "'auto'" in said
    assert "Did you mean bf16-mixed?" in said
