"""What ranks tell each other, among two of them and where there is one alone."""

import json
from pathlib import Path

import pytest
import torch
from helpers.rank_runs import forked, wait
from torch import distributed

from grpo_pl.system.collectives import (
    agreed,
    each_rank_says,
    first_rank_says,
    is_first_rank,
    launched_ranks,
    most_on_any_rank,
    rank_and_size,
)


def answers(number: int) -> dict[str, object]:
    return {
        "rank_and_size": rank_and_size(),
        "is_first_rank": is_first_rank(),
        "first_rank_says": first_rank_says(number),
        "each_rank_says": each_rank_says(number),
        "agreed": agreed("" if number == 5 else f"{number} is wrong"),
        "most_on_any_rank": most_on_any_rank(number, torch.device("cpu")),
    }


def rank(number: int, folder: Path) -> None:
    distributed.init_process_group("gloo", f"file://{folder / 'store'}", rank=number, world_size=2)
    (folder / f"{number}.json").write_text(json.dumps(answers(5 + number)))
    distributed.destroy_process_group()


def test_two_ranks_have_one_answer(tmp_path: Path) -> None:
    both = [forked().Process(target=rank, args=(number, tmp_path)) for number in range(2)]
    for process in both:
        process.start()
    assert wait(both) == [0, 0]
    for number in range(2):
        assert json.loads((tmp_path / f"{number}.json").read_text()) == {
            "rank_and_size": [number, 2],
            "is_first_rank": number == 0,
            "first_rank_says": 5,
            "each_rank_says": [5, 6],
            "agreed": "6 is wrong",
            "most_on_any_rank": 6,
        }


def test_a_process_alone_is_the_first_of_one() -> None:
    assert answers(5) == {
        "rank_and_size": (0, 1),
        "is_first_rank": True,
        "first_rank_says": 5,
        "each_rank_says": [5],
        "agreed": "",
        "most_on_any_rank": 5,
    }


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_the_launcher_tells_how_many_ranks_there_will_be(variable: str, monkeypatch) -> None:
    monkeypatch.setenv(variable, "3")
    assert launched_ranks() == 3
