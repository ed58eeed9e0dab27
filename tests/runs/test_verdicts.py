"""`verdicts.jsonl`: what each validation of a run found out about each problem."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Fit, command
from helpers.run_results import column

from grpo_pl.runs.layout import ENDED_FILE, VERDICTS_FILE
from grpo_pl.runs.verdicts import (
    ProblemVerdicts,
    append_verdicts,
    forget_verdicts,
    in_order,
    problem_id,
    read_verdicts,
)
from grpo_pl.types import Prompt

SHORT = (
    *("--samples.every", 0, "--data.val_samples", 3),
    *("--model.verifiers.accuracy", "helpers.half_right.HalfRight"),
)
FOUR = (
    *("--trainer.check_val_every_n_epoch", 2, "--trainer.max_epochs", 4, "--checkpoint.save_top_k", -1),
    *SHORT,
)


def verdicts(
    solved: Sequence[Sequence[int]], name: str = "val/accuracy", problems: Sequence[str] = ()
) -> ProblemVerdicts:
    names = problems or [f"{row}:aa" for row in range(len(solved))]
    return ProblemVerdicts(name, tuple(names), np.array(solved, dtype=bool))


def prompt(row: int, text: str = "What is 1 + 1?", answer: str = "2") -> Prompt:
    return Prompt(token_ids=[5], text=text, answer=answer, row=row)


# ------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("samples", [1, 3, 8])
@pytest.mark.parametrize("problems", [1, 7, 16])
def test_verdicts_read_back_as_they_were_written(problems: int, samples: int, tmp_path: Path) -> None:
    noise = np.random.default_rng([problems, samples])
    written = [verdicts(noise.integers(0, 2, (problems, samples)).tolist()) for _ in range(3)]
    for iteration, one in enumerate(written):
        append_verdicts(tmp_path / "v", iteration, [one])
    read = read_verdicts(tmp_path / "v")
    assert list(read) == [0, 1, 2]
    for iteration, one in enumerate(written):
        assert read[iteration].keys() == {"val/accuracy"}
        back = read[iteration]["val/accuracy"]
        assert back.problems == one.problems
        assert back.solved.tolist() == one.solved.tolist()


def test_a_line_by_hand(tmp_path: Path) -> None:
    append_verdicts(tmp_path / "v", 4, [verdicts([[1, 0], [1, 1], [0, 1]])])
    problems, line = map(json.loads, (tmp_path / "v").read_text().splitlines())
    assert problems["problems"] == ["0:aa", "1:aa", "2:aa"]
    # the bits 10 11 01, filled up to a byte: 10110100
    assert line == {
        "iteration": 4,
        "name": "val/accuracy",
        "of": problems["list"],
        "samples": 2,
        "solved": f"{0b10110100:x}",
    }


def test_the_list_of_problems_is_written_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "v"
    append_verdicts(path, 0, [verdicts([[1], [0]]), verdicts([[1], [1]], "val/other")])
    append_verdicts(path, 1, [verdicts([[0], [0]])])
    append_verdicts(path, 2, [verdicts([[0], [1]], problems=["0:aa", "2:bb"])])
    assert path.read_text().count('"problems"') == 2
    read = read_verdicts(path)
    assert read[1]["val/accuracy"].problems == ("0:aa", "1:aa")
    assert read[2]["val/accuracy"].problems == ("0:aa", "2:bb")


def test_forgetting_drops_later_iterations_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "v"
    for iteration in range(4):
        append_verdicts(path, iteration, [verdicts([[1], [0]])])
    before = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"iteration": 2, "name": "val/acc')
    assert list(read_verdicts(path)) == [0, 1, 2, 3]
    forget_verdicts(path, after=3)
    assert path.read_bytes() == before
    forget_verdicts(path, after=1)
    assert list(read_verdicts(path)) == [0, 1]
    forget_verdicts(path, after=-1)
    assert read_verdicts(path) == {}
    forget_verdicts(tmp_path / "nowhere", after=0)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "line",
    [
        {"iteration": 1, "name": "val/accuracy", "of": "unknown", "samples": 1, "solved": "80"},
        {"iteration": 1, "name": "val/accuracy", "of": "{list}", "samples": 1, "solved": "8080"},
    ],
)
def test_a_line_that_does_not_fit_its_problems_is_refused(line: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "v"
    append_verdicts(path, 0, [verdicts([[1], [0]])])
    known = json.loads(path.read_text().splitlines()[0])["list"]
    with path.open("a") as file:
        file.write(json.dumps(line | {"of": str(line["of"]).format(list=known)}) + "\n")
    with pytest.raises(ValueError, match=r"unknown list|has 2 bytes"):
        read_verdicts(path)


# -------------------------------------------------------------------------------------------------- problems


def test_a_problem_is_told_by_its_place_its_question_and_its_answer() -> None:
    assert problem_id(prompt(3)) == problem_id(prompt(3))
    others = [prompt(4), prompt(3, text="What is 1 + 2?"), prompt(3, answer="3")]
    assert len({problem_id(one) for one in (prompt(3), *others)}) == 4


def test_problems_stand_in_the_order_of_their_places_whichever_rank_had_them() -> None:
    solved = {problem_id(prompt(row)): [row % 3 == 0] for row in (10, 2, 0, 9, 1)}
    found = in_order("val/accuracy", solved)
    assert [problem.partition(":")[0] for problem in found.problems] == ["0", "1", "2", "9", "10"]
    assert found.solved.tolist() == [[True], [False], [False], [True], [False]]


# ------------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def run(fit: Fit) -> Path:
    """Four iterations, of which every second one is validated, with three samples a problem."""
    return fit(*FOUR)


def test_each_validation_has_its_verdicts_and_the_one_before_training_is_row_0(run: Path) -> None:
    read = read_verdicts(run / VERDICTS_FILE)
    assert list(read) == [0, 2, 4]
    for at in read.values():
        assert {name: one.solved.shape for name, one in at.items()} == {
            "val/accuracy": (8, 1),
            "val_sampled/accuracy": (8, 3),
        }


def test_the_means_of_the_verdicts_are_the_metrics(run: Path) -> None:
    read = read_verdicts(run / VERDICTS_FILE)
    for name, metric in (("val/accuracy", "val/accuracy"), ("val_sampled/accuracy", "val/accuracy_pass@1")):
        means = [at[name].solved.mean() for at in read.values()]
        assert 0 < min(means) <= max(means) < 1
        assert means == pytest.approx(column(run, metric))


def test_a_resumed_run_has_each_validation_once_and_the_same_verdicts(
    run: Path, fit: Fit, tmp_path: Path
) -> None:
    resumed = tmp_path / "run"
    shutil.copytree(run, resumed, symlinks=True)
    (resumed / ENDED_FILE).unlink()
    for newest in ("0003", "0004"):
        for file in (resumed / "checkpoints").glob(f"iteration-{newest}.ckpt*"):
            file.unlink()
    (resumed / "checkpoints" / "last.ckpt").unlink()
    (resumed / "checkpoints" / "last.ckpt").symlink_to("iteration-0002.ckpt")
    fit(*FOUR, "--trainer.max_epochs", 3, root=resumed)
    assert list(read_verdicts(resumed / VERDICTS_FILE)) == [0, 2]
    fit(*FOUR, "--ckpt_path", "last", root=resumed)
    assert (resumed / VERDICTS_FILE).read_bytes() == (run / VERDICTS_FILE).read_bytes()


def test_a_run_killed_before_its_first_checkpoint_begins_its_verdicts_again(
    run: Path, fit: Fit, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again, symlinks=True)
    (again / ENDED_FILE).unlink()
    shutil.rmtree(again / "checkpoints")
    fit(*FOUR, root=again)
    assert (again / VERDICTS_FILE).read_bytes() == (run / VERDICTS_FILE).read_bytes()


def test_on_two_ranks_every_problem_has_the_verdict_that_it_has_on_one(run: Path, fit: Fit) -> None:
    once = "--trainer.max_epochs", 1, "--trainer.strategy", "ddp"
    two = read_verdicts(fit(*SHORT, *once, ranks=2) / VERDICTS_FILE)
    one = read_verdicts(run / VERDICTS_FILE)
    for name in ("val/accuracy", "val_sampled/accuracy"):
        assert two[0][name].problems == one[0][name].problems
        assert two[0][name].solved.tolist() == one[0][name].solved.tolist()
    assert list(two) == [0, 1]


def test_the_command_validate_keeps_no_verdicts(run: Path) -> None:
    before = (run / VERDICTS_FILE).read_bytes()
    last = run / "checkpoints" / "last.ckpt"
    command("validate", "--config", run / "config.yaml", "--ckpt_path", last)
    assert (run / VERDICTS_FILE).read_bytes() == before


def test_without_validation_there_is_no_file(fit: Fit) -> None:
    folder = fit("--samples.every", 0, "--trainer.max_epochs", 1, "--data.val", "null")
    assert not (folder / VERDICTS_FILE).exists()
