"""tools/simulate.py: its constants from measurements, and the command."""

import json
import subprocess
import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from helpers.repository import ROOT, load_tool

sys.path.insert(0, str(ROOT / "tools"))

from simulation.cost import LAYOUTS
from simulation.findings import (
    ONE_RANK,
    calibrated,
    validation,
)

simulate = load_tool("simulate")


# ---------------------------------------------------------------------------------------------- calibration


def made_up_bench(flops: float, step_s: float, sync_s: float) -> dict[str, Any]:
    """What grpo_pl bench would write on a machine that is just as the formulas say."""
    work: dict[str, Any] = {"data.prompts_per_iteration": "8", "data.group_size": "8"}
    work |= {"data.sampling.max_tokens": "64", "options": []}
    bench: dict[str, Any] = {"work": work, "tokens": {"response": 2048.0}, "scaling": None}
    bench |= {"limit": {"engine": 1.0, "packed": 1.0, "padded": 2.0}, "stages": {"sync": sync_s}}
    known = calibrated(bench)
    known = replace(known, machine=replace(known.machine, flops=flops, step_s=step_s))
    stages = known.cost(ONE_RANK).stages
    bench["limit"] = {"engine": stages["generate"], "packed": stages["update"], "padded": inf}
    bench["stages"] = stages | {"iteration": sum(stages.values())}
    grown = replace(known.work, prompts=2, group_size=32, prompt_tokens=56, mean_share=1.0)
    seconds = sum(replace(known, work=grown).cost(ONE_RANK).stages.values())
    bench["scaling"] = {"group_size": [{"group_size": 32, "response_tokens": 4096, "iteration_s": seconds}]}
    return bench


def test_calibration_finds_the_constants_of_the_machine_that_was_measured() -> None:
    found = calibrated(made_up_bench(3e11, 0.04, 0.5)).machine
    assert found.flops == pytest.approx(3e11)
    assert found.step_s == pytest.approx(0.04)
    assert found.tensor_s == pytest.approx(0.5 / 272)


def test_predictions_of_such_a_machine_are_right_and_of_a_slower_one_too_low() -> None:
    bench = made_up_bench(3e11, 0.04, 0.5)
    rows = validation(bench)
    assert [name for name, *_ in rows] == ["sync", "generate", "update", "iteration", "group_size 32"]
    assert all(predicted == pytest.approx(measured) for _, predicted, measured in rows)
    bench["scaling"]["group_size"][0]["iteration_s"] *= 2
    *_, (_, predicted, measured) = validation(bench)
    assert predicted == pytest.approx(measured / 2)


# -------------------------------------------------------------------------------------------------- command


def test_the_command_shows_writes_and_draws(tmp_path: Path) -> None:
    bench, out, plot = (tmp_path / name for name in ("bench.json", "out.json", "plot.png"))
    bench.write_text(json.dumps(made_up_bench(3e11, 0.04, 0.5)))
    command = [sys.executable, ROOT / "tools" / "simulate.py", "--models", "[7B, 70B]", "--nodes", "[128, 1]"]
    options = ["--lengths", "[1024]", "--work.max_tokens", "2048", "--machine.mfu", "0.4"]
    files = ["--bench", bench, "--out", out, "--plot", plot]
    done = subprocess.run([*command, *options, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for title in ("7B: seconds of an iteration", "Fastest layout", "What breaks first", "This machine"):
        assert title in done.stdout
    found = json.loads(out.read_text())
    assert found["machine"]["mfu"] == 0.4
    assert {(row["model"], row["max_tokens"], row["gpus"]) for row in found["costs"]} == {
        (model, length, gpus) for model in ("7B", "70B") for length in (1024, 2048) for gpus in (8, 1024)
    }
    assert {row["layout"] for row in found["costs"]} == set(LAYOUTS)
    assert all("refused" in row or row["iteration_s"] > 0 for row in found["costs"])
    assert found["breaks"]["7B"][0]["refused_gpus"] == 1024
    assert found["validation"][0]["what"] == "sync"
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--machine.mfu", "2"], "machine.mfu=2.0: expected a share, at most 1"),
        (["--machine.flops", "0"], "machine.flops=0.0: expected more than 0"),
        (["--machine.flops", "fast"], "machine.flops: expected float, got fast"),
        (["--work.promts", "8"], "Did you mean work.prompts?"),
        (["--models", "[8B]"], "models: expected some of 0.135B, 1.5B, 7B, 32B, 70B, got 8B"),
        (["--models", "[]"], "models: expected some of 0.135B, 1.5B, 7B, 32B, 70B, got none"),
        (["--nodes", "[0]"], "nodes=[0]: expected numbers of 1 or more"),
        (["--bench", "absent.json"], "bench: absent.json is not what grpo_pl bench --out writes"),
        (["--out", "absent/out.json"], "out: there is no folder absent"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate.main(options)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_measurements_of_another_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = made_up_bench(3e11, 0.04, 0.5)
    bench["work"]["options"] = ["--pretrained", "other"]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench))
    with pytest.raises(SystemExit):
        simulate.main(["--bench", str(path)])
    assert "--pretrained other" in capsys.readouterr().err
