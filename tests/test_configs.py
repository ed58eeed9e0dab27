"""Every config parses, and every ablation is one line that runs."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.arms import too_much
from helpers.repository import ROOT

from grpo_pl.__main__ import main
from grpo_pl.commands.ablate.planned import plan_runs
from grpo_pl.commands.ablate.study import read_study
from grpo_pl.runs.layout import read_metrics

CONFIGS = ROOT / "configs"
OVERLAYS = [
    CONFIGS / "ppo.yaml",
    *sorted(CONFIGS.glob("task/*.yaml")),
    *sorted(CONFIGS.glob("engine/*.yaml")),
]
BASES = ["grpo.yaml", "quickstart.yaml"]
ABLATIONS = [
    pytest.param(path, marks=[pytest.mark.vllm] * ("VLLMEngine" in path.read_text()))
    for path in sorted(CONFIGS.glob("ablations/*.yaml"))
]
STUDIES = sorted(CONFIGS.glob("studies/*.yaml"))
OF_WHOLES = {"ppo_defaults", "lab_ppo_defaults", "lab_imitation"}
"""Studies of two sets of defaults, each as a whole; the arms of all others change one thing."""
PRESETS = sorted(CONFIGS.glob("presets/*.yaml"))


@pytest.mark.parametrize("name", BASES)
def test_a_base_config_parses_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", str(CONFIGS / name), "--print_config"])
    assert done.value.code == 0
    assert "class_path: grpo_pl.rollout.vllm.VLLMEngine" in capsys.readouterr().out


@pytest.mark.parametrize("overlay", [*OVERLAYS, *PRESETS], ids=lambda p: p.stem)
def test_an_overlay_parses_over_grpo(overlay: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", str(CONFIGS / "grpo.yaml"), "--config", str(overlay), "--print_config"])
    assert done.value.code == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("task", "reward"), [("calculator", "correct"), ("guessing_game", "game")])
def test_a_task_of_episodes_runs(task: str, reward: str, fit: Callable[..., Path], tmp_path: Path) -> None:
    fit(
        *("--config", str(CONFIGS / "task" / f"{task}.yaml"), "--trainer.default_root_dir", str(tmp_path)),
        *("--data.prompts_per_iteration", "2", "--data.minibatches", "1", "--trainer.max_epochs", "1"),
        *("--data.max_prompt_tokens", "176", "--data.format.few_shot", "[]", "--data.episodes.tokens", "80"),
        *("--data.train.size", "20", "--trainer.limit_val_batches", "0"),
    )
    row = read_metrics(tmp_path / "metrics.csv")[-1]
    assert row["episodes/turns"] >= 1
    assert row[f"rewards/{reward}"] == 0


@pytest.mark.parametrize("overlay", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_is_one_line(overlay: Path) -> None:
    lines = [line for line in overlay.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == 1
    assert set(yaml.safe_load(lines[0])) <= {"model", "data", "head_dtype"}


@pytest.mark.usefixtures("forked_engines")
@pytest.mark.parametrize("overlay", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_runs(overlay: Path, fit: Callable[..., Path]) -> None:
    check_two_iterations(fit, overlay)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_a_preset_runs_over_any_config(
    preset: Path, fit: Callable[..., Path], tiny_untied_model: Path
) -> None:
    """Even over one with a critic and without a reference: it takes away and brings what it needs."""
    without_reference = CONFIGS / "ablations" / "no_reference.yaml"
    options: dict[str, tuple[object, ...]] = {
        "dapo": ("--data.resample.by", "digit"),  # the reward of this config
        "distillation": ("--model.reference.pretrained", tiny_untied_model),
        "vapo": ("--model.critic_warmup", "0"),  # else the policy stands still
    }
    overlays = CONFIGS / "ppo.yaml", without_reference, preset
    check_two_iterations(fit, *overlays, options=options.get(preset.stem, ()))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_variant_of_a_study_passes_the_checks(
    path: Path,
    weightless: Path,
    outcome_model: Path,
    process_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = replace(read_study(path), seeds=[1])
    by_hand = {"runs/reward_model/model", "runs/quickstart/model"}
    for product in by_hand | {str(step.product) for step in study.prepare}:
        rewards = {"process_reward_model": process_model, "reward_model": outcome_model}
        model = next((model for name, model in rewards.items() if name in product), weightless)
        (tmp_path / product).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / product).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    options, pretrained = study.write_settings(tmp_path / "settings"), ["--pretrained", str(weightless)]
    runs = list(plan_runs(study, options, tmp_path / "out", pretrained))
    assert [run.variant for run in runs] == list(study.variants)
    assert not (tmp_path / "out").exists()
    settings = {run.variant: run.fit.settings.as_dict() for run in runs}
    arms = {arm: {key: whole[key] for key in ("model", "data")} for arm, whole in settings.items()}
    assert path.stem in OF_WHOLES or too_much(arms) == {}


def test_arms_that_change_two_things_are_found() -> None:
    def arm(**model: object) -> dict[str, object]:
        plain = {"kl": None, "advantage": {"class_path": "A", "init_args": {"ddof": 1, "eps": 0.1}}}
        return {"model": plain | model}

    other = {"class_path": "B", "init_args": {"ddof": 1, "lam": 1.0}}
    arms = {
        "base": arm(),
        "one_argument": arm(advantage={"class_path": "A", "init_args": {"ddof": 0, "eps": 0.1}}),
        "another_class": arm(advantage=other),
        "no_longer_null": arm(kl={"class_path": "K", "init_args": {"coefficient": 0.1}}),
        "two_arms": arm(advantage=other, kl={"class_path": "K", "init_args": {"coefficient": 0.1}}),
        "from_an_arm": arm(kl={"class_path": "K", "init_args": {"coefficient": 0.2}}, advantage=other),
    }
    assert too_much(arms) == {}
    arms["wrong"] = arm(kl={"class_path": "K", "init_args": {"coefficient": 0.5}}, critic="C")
    arms["shared"] = arm(advantage={"class_path": "B", "init_args": {"ddof": 2, "lam": 0.5}})
    assert too_much(arms) == {
        "wrong": {"model.kl", "model.critic"},
        "shared": {"model.advantage", "model.advantage.ddof"},
    }


def check_two_iterations(fit: Callable[..., Path], *overlays: Path, options: tuple[object, ...] = ()) -> None:
    configs = [argument for overlay in overlays for argument in ("--config", str(overlay))]
    folder = fit(*configs, *options, "--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0")
    rows = read_metrics(folder / "metrics.csv")
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert all(math.isfinite(row["train/loss"]) for row in rows[1:])
    assert rows[2]["train/grad_norm"] > 0
    assert {"train/padding", "rollout/groups_without_signal", "train/effective_sample_size"} <= rows[2].keys()
