"""How many runs a machine does at once, and what is decided of a run before it begins."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from helpers.repository import ROOT
from helpers.studies import VARIANTS, write_study

from grpo_pl.commands.ablate.planned import PlannedRun, plan_runs
from grpo_pl.commands.ablate.sharing import jobs_that_fit, shares_of_machine
from grpo_pl.commands.ablate.study import read_study
from grpo_pl.commands.checked import Checked, check
from grpo_pl.runs.layout import CONFIG_FILE, ENDED_FILE

without_gpu = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="GPUs are shared instead of cores")


@pytest.fixture
def two_cores() -> Iterator[None]:
    """This process may use two cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    yield
    os.sched_setaffinity(0, before)


def checked(weightless: Path, *options: object) -> Checked:
    tiny = ("--config", ROOT / "configs" / "tiny.yaml", "--pretrained", weightless)
    return check([str(word) for word in (*tiny, *options)])


def plan(study: Path, out: Path) -> list[PlannedRun]:
    read = read_study(study)
    return list(plan_runs(read, read.write_settings(out.parent / "aside"), out, []))


@without_gpu
@pytest.mark.usefixtures("two_cores")
def test_as_many_runs_at_once_as_cores_and_each_has_a_thread(weightless: Path) -> None:
    assert jobs_that_fit([checked(weightless)]) == 2
    assert [share["OMP_NUM_THREADS"] for share in shares_of_machine(2)] == ["1", "1"]


@without_gpu
@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    "options",
    [
        ("--trainer.devices", 2, "--trainer.strategy", "ddp"),
        ("--data.prompts_per_iteration", 2**20, "--data.minibatches", 1),  # more than any machine's memory
    ],
    ids=["cores", "memory"],
)
def test_a_run_that_takes_the_whole_machine_is_alone(options: tuple[object, ...], weightless: Path) -> None:
    assert jobs_that_fit([checked(weightless), checked(weightless, *options)]) == 1


def test_a_variant_is_checked_once_for_all_its_seeds(weightless: Path, tmp_path: Path) -> None:
    runs = plan(write_study(tmp_path, weightless, VARIANTS, seeds=3), tmp_path / "out")
    assert [run.name for run in runs[::2]] == ["grpo, seed 1", "grpo, seed 2", "grpo, seed 3"]
    assert len({id(run.fit) for run in runs}) == 2


def test_a_run_has_ended_where_its_folder_holds_its_own_seed(weightless: Path, tmp_path: Path) -> None:
    study, out = write_study(tmp_path, weightless, VARIANTS, seeds=3), tmp_path / "out"
    first, second, third = (run for run in plan(study, out) if run.variant == "grpo")
    for run in (first, second, third):
        check(run.options).prepare()
        (run.folder / ENDED_FILE).write_text("{}")
    config = yaml.safe_load((third.folder / CONFIG_FILE).read_text())
    config["data"]["seed"] = 2
    (third.folder / CONFIG_FILE).write_text(yaml.safe_dump(config))
    assert [run.ended for run in plan(study, out)] == [True, False, True, False, False, False]
