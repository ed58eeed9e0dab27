"""The numbers of `bench`: by hand from made-up iterations, and once for real on the tiny model."""

import json
from pathlib import Path

import pytest
from helpers.commands import command, process
from helpers.repository import ROOT

from grpo_pl.commands.bench import command as bench
from grpo_pl.system.precision import PRECISIONS, device_here, measured_rates

BENCH = ROOT / "tools" / "bench.py"


def row(iteration_s: float, **numbers: float) -> dict[str, float]:
    stages = {"time/sync_s": 1.0, "time/generate_s": 2.0, "time/score_s": 0.0, "time/update_s": 4.0}
    others = {"engine_s": 2.0, "padded_s": 5.0, "packed_s": 3.0, "peak_gib": 6.0, "tokens_to_read": 80.0}
    machine = {"engine_s": 1.0, "update_s": 1.5, "gflops": 100.0, "gib_per_s": 10.0}
    rollout = {"rollout/tokens": 100.0, "train/padding": 0.25}
    others |= {f"machine_{name}": value for name, value in machine.items()}
    return {**stages, **others, **rollout, "iteration_s": iteration_s, **numbers}


def test_medians_leave_the_first_iteration_out() -> None:
    found = bench.summary([row(1000.0, peak_gib=99.0), row(8.0), row(10.0), row(20.0, packed_s=18.0)])
    assert found["ratio_to_limit"] == 4.0  # 8 / (1 + 1.5), 10 / 2.5, 20 / 2.5
    # 8 / (2 + 3), 10 / (2 + 3), 20 / (2 + 5): padded was faster there
    assert found["ratio_to_own_limit"] == 2.0
    assert found["sync_share"] == 0.1
    assert found["stages"] == {"sync": 1, "generate": 2, "score": 0, "update": 4, "other": 3, "iteration": 10}
    assert found["limit"] == {"engine": 2, "padded": 5, "packed": 3, "whole": 5}
    assert found["tokens"] == {"response": 100, "to_read": 80, "per_s": 10, "padding": 0.25}
    assert found["memory_gib"] == {"peak": 6}


def test_growth_is_measured_over_both_axes_in_micro_batches_of_16() -> None:
    asked = []

    def part(name: str, _: str, options: list[str], iterations: int) -> list[dict[str, float]]:
        asked.append((name, iterations, {o.partition("=")[0]: o.partition("=")[2] for o in options}))
        return [row(1.0), row(10.0), row(10.0)]

    grown = bench.scaling(part, ["--pretrained=tiny"], 3)
    assert [r["group_size"] for r in grown["group_size"]] == [4, 8, 16, 32]
    assert [r["max_tokens"] for r in grown["max_tokens"]] == [32, 64, 128, 256]
    assert grown["group_size"][0]["ms_per_token"] == 100
    sizes = [
        int(o["--data.prompts_per_iteration"])
        * int(o["--data.group_size"])
        // int(o["--trainer.accumulate_grad_batches"])
        for _, _, o in asked
    ]
    assert sizes == [8, 16, 16, 32, 16, 16, 16, 16]  # a micro-batch holds whole groups
    assert all(o["--pretrained"] == "tiny" for _, _, o in asked)


@pytest.mark.parametrize(("options", "precision"), [([], None), (["--trainer.precision=32-true"], "32-true")])
def test_work_is_done_in_the_type_that_fits_unless_options_say_otherwise(
    options: list[str], precision: str | None
) -> None:
    fitting = PRECISIONS[measured_rates(device_here().type).fitting]
    assert bench.precision_of(bench.options_of({}, options)) == (precision or fitting)


def test_the_peer_counts_in_the_precision_that_is_best_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "grpo_pl" / "bench" / bench.TRL.replace("==", "-") / "trl").mkdir(parents=True)
    asked = []

    def part(_: str, __: str, options: list[str], ___: int, ____: str) -> list[dict[str, float]]:
        asked.append(bench.precision_of(options))
        return [row(1.0), row(10.0 - len(asked), response_tokens=5.0)]

    best = bench.fastest_peer(part, [], 2)
    assert asked == list(dict.fromkeys([PRECISIONS[measured_rates(device_here().type).fitting], "32-true"]))
    assert (best["precision"], best["iteration_s"]) == (asked[-1], 10.0 - len(asked))


@pytest.mark.vllm
def test_an_iteration_is_measured_beside_its_limit(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    small = ("--data.prompts_per_iteration=4", "--data.group_size=4", "--trainer.accumulate_grad_batches=4")
    command(
        *("bench", "--iterations", 2, "--no-scaling", "--out", out, "--pretrained", tiny_model, *small),
        *("--data.sampling.max_tokens=16", "--trainer.precision=32-true"),
    )
    found = json.loads(out.read_text())
    assert found["ratio_to_limit"] > found["ratio_to_own_limit"] > 0
    assert 0 < found["tokens"]["to_read"] < found["tokens"]["response"] + 4 * 40
    split = found["split"]
    assert sum(split[f"{part}_s"] for part in ("products", "traffic", "overhead")) == pytest.approx(
        split["wall_s"]
    )
    assert min(split["products_s"], split["traffic_s"], split["overhead_s"]) > 0
    assert 0 <= split["idle"] < 1
    assert 0 < found["sync_share"] < 1
    stages = found["stages"]
    assert sum(s for name, s in stages.items() if name != "iteration") == pytest.approx(stages["iteration"])
    assert stages["score"] < stages["update"], "nothing has to be scored before the only optimizer step"
    assert found["tokens"]["response"] > 4 * 4
    memory = found["memory_gib"]  # of a model so small, libraries take nearly all, and vary by themselves
    assert memory["peak"] > 0.9 * memory["engine_alone"] > 0
    assert memory["above_engine"] == memory["peak"] - memory["engine_alone"]
    assert found["ratio_to_peer"] is found["scaling"] is None
    assert "ratio to the machine's limit" in capsys.readouterr().out


def test_a_wrong_option_is_refused_in_one_sentence() -> None:
    done = process(BENCH, "--iterations", 2, "--data.group_sise", 3)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "data.group_sise" in done.stderr
    assert "data.group_size" in done.stderr
