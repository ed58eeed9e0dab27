"""One rank's mistake ends a run of several, on the real command line."""

from pathlib import Path

import pytest
from helpers.commands import process
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_mistake_on_one_rank_is_the_sentence_and_the_exit_code_of_all(
    tiny_model: Path, tmp_path: Path, rank: int
) -> None:
    """The other one waits for it in the sum of the rewards."""
    done = process(
        *("-m", "grpo_pl", "fit", "--config", ROOT / "configs" / "tiny.yaml", "--pretrained", tiny_model),
        *("--trainer.default_root_dir", tmp_path / "run", "--trainer.strategy", "ddp"),
        *("--trainer.devices", "2", *NO_VALIDATION, "--model.rewards", '{"mine": "Function"}'),
        *("--model.rewards.mine.function", f"helpers.rank_probes.fails_on_rank_{rank}"),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("grpo_pl: error: Reward 'mine' failed with KeyError: 'mine'") == 1, done.stderr
    assert "Traceback" not in done.stderr
