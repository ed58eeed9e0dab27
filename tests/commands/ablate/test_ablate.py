"""Studies that are run."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Fit
from helpers.repository import ROOT
from helpers.run_results import column, rows, same, saved, untimed
from helpers.studies import VARIANTS, ablate, start, write_study

from grpo_pl.__main__ import main
from grpo_pl.runs.layout import ENDED_FILE

FAILS = {"trainer": {"callbacks": [{"class_path": "helpers.faults.KillEngine"}]}}
"""In the second iteration, for its engine has no process."""
ALONE = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}


def first_prompts(folder: Path) -> list[Any]:
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [record["prompt"] for record in records]


def table(out: Path) -> str:
    """The report without what is another each time: seconds and memory, which its summary tells as well."""
    text = (out / "report.md").read_text()
    return re.sub(r" It takes .* the training time\.", "", text[: text.index("## Cost")])


@pytest.mark.timeout(900)
def test_a_failed_run_is_named_the_others_go_on_and_the_same_command_does_the_rest(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "out"

    def ablate_here(variants: dict[str, Any], *arguments: str) -> tuple[object, str]:
        study = str(write_study(tmp_path, tiny_model, variants))
        with pytest.raises(SystemExit) as end:
            main(["ablate", study, "--out", str(out), *arguments])
        return end.value.code, capsys.readouterr().out

    code, text = ablate_here({"grpo": {}, "fails": FAILS})
    assert code == 1, text
    assert "! fails, seed 1 failed: exit code 1: AttributeError" in text
    assert "1 of 2 runs failed: the same command tries them again." in text
    assert "fails, seed 1, ended after iteration 1 of 2" in (out / "report.md").read_text()
    before = rows(out / "grpo" / "seed-1")
    code, text = ablate_here(VARIANTS)
    assert code == 0, text
    assert "2 runs of 2 variants: 1 have ended" in text
    assert "grpo, seed 1: " not in text
    assert "no_kl, seed 1: val/accuracy " in text
    assert rows(out / "grpo" / "seed-1") == before
    assert (out / "report.html").exists()
    ours, theirs = (first_prompts(out / name / "seed-1") for name in VARIANTS)
    assert ours == theirs, "the same prompts in the same order"
    rewards = [column(out / name / "seed-1", "rollout/reward")[0] for name in VARIANTS]
    assert rewards[0] == rewards[1], "the same initial weights say the same"
    code, text = ablate_here(VARIANTS, "--seeds", "[2]", "--variants", "[no_kl]")
    assert code == 0, text
    assert "1 runs of 1 variants: 0 have ended" in text
    runs = (out / "report.md").read_text().partition("## Runs")[2].replace("\\", "")
    reported = [f"{out.name}/{name}" for name in ("grpo/seed-1", "no_kl/seed-1", "no_kl/seed-2")]
    assert re.findall(rf"{out.name}/\w+/seed-\d", runs) == reported, "all that is in the folder"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_leaves_the_others_which_end_as_the_same_commands_by_hand_do(
    tiny_model: Path, tmp_path: Path
) -> None:
    killed = {"trainer": {"callbacks": [{"class_path": "helpers.faults.KillRun"}]}}
    study = write_study(tmp_path, tiny_model, {"killed": killed} | VARIANTS)
    code, text = ablate(study, tmp_path / "out", "--jobs", "2")
    assert code == 1, text
    assert "! killed, seed 1 failed: exit code -9: " in text
    for variant in VARIANTS:
        forked, by_hand = (tmp_path / name / variant / "seed-1" for name in ("out", "by_hand"))
        words = forked.with_name("seed-1.log").read_text().splitlines()[0].removeprefix("$ ").split(" ")
        own_folder = [word if word != str(forked) else str(by_hand) for word in words]
        subprocess.run(own_folder, env=ALONE, check=True, capture_output=True)
        assert untimed(forked) == untimed(by_hand)
        assert same(saved(forked)["state_dict"], saved(by_hand)["state_dict"])
        ours, theirs = ((folder / "config.yaml").read_text() for folder in (forked, by_hand))
        assert ours == theirs.replace(str(by_hand), str(forked))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_study_that_was_cut_off_ends_with_the_table_of_one_that_was_not(
    number: signal.Signals, tiny_model: Path, tmp_path: Path
) -> None:
    study = write_study(tmp_path, tiny_model, VARIANTS, seeds=[1, 2], budget={"iterations": 6})
    whole, cut = tmp_path / "whole" / "study", tmp_path / "cut" / "study"
    assert ablate(study, whole)[0] == 0
    process, under_way = start(study, cut), cut / "no_kl" / "seed-1"
    while not (under_way / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 75), text
    assert not (under_way / ENDED_FILE).exists()
    code, text = ablate(study, cut)
    assert code == 0, text
    assert "4 runs of 2 variants: 1 have ended" in text
    assert table(whole).replace(str(whole), str(cut)) == table(cut)


def test_the_iteration_that_spends_a_budget_of_tokens_is_the_last_validated_and_saved(fit: Fit) -> None:
    run: tuple[object, ...] = ("--trainer.max_epochs", -1, "--budget.response_tokens", 500)
    run += ("--trainer.check_val_every_n_epoch", 4, "--checkpoint.every_n_epochs", 4)
    folder = fit(*run)
    tokens, before = column(folder, "rollout/tokens"), rows(folder)
    assert sum(tokens[:-1]) < 500 <= sum(tokens)
    assert "val/accuracy" in before[-1]
    assert saved(folder)["global_step"] == before[-1]["optimizer_steps"]
    (folder / ENDED_FILE).unlink()  # as a kill after its last iteration leaves it
    fit(*run, root=folder)
    assert rows(folder) == before


def test_a_budget_of_seconds_ends_the_run_in_the_iteration_that_spends_it(fit: Fit) -> None:
    folder = fit("--trainer.max_epochs", "-1", "--budget.seconds", "1e-3")
    assert column(folder, "iteration") == [0, 1]


def test_a_budget_of_nothing_is_refused(fit: Fit, refused: Any) -> None:
    assert "budget.seconds=0.0: expected more than 0, or null" in refused(fit, "--budget.seconds", "0")
