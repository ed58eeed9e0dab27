"""`rollout` makes the files that a run would have kept, and nothing else."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.commands import Fit, OverARun, Refused, command
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION

from grpo_pl.__main__ import main
from grpo_pl.rollout.parquet import file_name

Make = Callable[..., None]


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Make:
    """Runs `rollout` on configs/tiny.yaml into the folder `out` of the test's."""

    def run(*arguments: object) -> None:
        fixed = ("--config", ROOT / "configs" / "tiny.yaml", "--pretrained", tiny_model)
        main(["rollout", *map(str, (*fixed, "--out", tmp_path / "out", *arguments))])

    return run


def test_the_first_file_is_that_of_a_run_and_no_model_is_built_for_it(
    make: Make, fit: Fit, tmp_path: Path
) -> None:
    once = ("--trainer.max_epochs", "1")
    make(*once, "--model.policy.pretrained", tmp_path / "nothing", "--trainer.devices", "2")
    run = fit(*once, *NO_VALIDATION, "--data.keep_rollouts", "true", "--samples.every", "0")
    ours, theirs = (folder / file_name(1) for folder in (tmp_path / "out", run / "rollouts"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_what_was_cut_off_goes_on_and_what_is_there_stays(
    make: Make, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    make()
    assert capsys.readouterr().out.endswith(
        "/out: 3 iterations, 12 prompts, 48 responses, 768 tokens, mean reward 0.333\n"
    )
    (out / file_name(1)).write_bytes(whole := (out / file_name(1)).read_bytes())
    os.utime(out / file_name(1), (0, 0))
    third = (out / file_name(3)).read_bytes()
    (out / file_name(3)).unlink()
    (out / f".{file_name(3)}.1.partial").write_bytes(third[:100])
    make("--trainer.max_epochs", "4")
    assert (out / file_name(1)).stat().st_mtime == 0
    assert (out / file_name(1)).read_bytes() == whole
    assert (out / file_name(3)).read_bytes() == third
    names = sorted(path.name for path in out.iterdir())
    assert names == ["config.yaml", *(file_name(n) for n in (1, 2, 3, 4))]
    versions = {
        row["policy_version"] for n in (1, 4) for row in pq.read_table(out / file_name(n)).to_pylist()
    }
    assert versions == {0}, "all are by the pretrained weights"
    for other in (("--data.seed", "1"), ("--model.rewards.digit.pattern", "x")):
        key = other[0].removeprefix("--").rpartition(".")[0]
        assert f"out has rollouts with other settings of {key}" in refused(make, *other)


def test_episodes_are_counted_and_kept(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("--data.environment", "helpers.episodes.Greets", "--data.episodes.tokens", "100")
    assert "/out: 3 iterations, 12 prompts, 48 episodes, " in capsys.readouterr().out
    rows = pq.read_table(tmp_path / "out" / file_name(1)).to_pylist()
    assert {row["stop"] for row in rows} <= {"done", "turn_tokens", "tokens"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--trainer.max_epochs -1", "trainer.max_epochs: rollout needs a number of iterations"),
        ("--data.group_size 1", "data.group_size=1: model.advantage compares the responses"),
        ("--out {here}/file", "--out=.*file: .*file is a file; name a folder"),
        (
            "--data.engine VLLMEngine --data.engine.tensor_parallel_size 2",
            "tensor_parallel_size=2 does not go",
        ),
        ("--job reward_model --config {here}/no", "there is no file"),
    ],
)
def test_a_wrong_command_is_refused(
    refused: Refused, over_a_run: OverARun, tmp_path: Path, arguments: str, sentence: str
) -> None:
    (tmp_path / "file").touch()
    words = f"--out {{here}}/out {arguments}"
    assert re.search(sentence, refused(over_a_run, words, name="rollout"))
    assert not (tmp_path / "out").exists()


def test_without_a_folder_it_is_refused(refused: Refused) -> None:
    assert "rollout: the following arguments are required: --out" in refused(command, "rollout")
