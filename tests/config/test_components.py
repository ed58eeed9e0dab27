"""Components are found in their folders: a new file is enough."""

from pathlib import Path

from helpers.commands import process
from helpers.repository import ROOT

from grpo_pl.config.components import COMPONENTS

NEW_REWARD = """
from grpo_pl.rewards.base import RewardFunction


class Kind(RewardFunction):
    def score(self, samples):
        return [1.0 for _ in samples]
"""
LOOK = """
import sys

import grpo_pl.rewards

grpo_pl.rewards.__path__.append(sys.argv[1])
from grpo_pl.__main__ import main

main(sys.argv[2:])
"""


def test_a_reward_in_a_new_file_goes_by_its_short_name(tmp_path: Path) -> None:
    (tmp_path / "kind.py").write_text(NEW_REWARD)
    config = ROOT / "configs" / "tiny.yaml"
    done = process(
        "-c", LOOK, tmp_path, "fit", "--config", config, "--model.rewards", "{a: Kind}", "--print_config"
    )
    assert done.returncode == 0, done.stderr
    assert "class_path: grpo_pl.rewards.kind.Kind" in done.stdout


def test_the_search_imports_no_library_that_is_optional_or_slow() -> None:
    heavy = {"vllm", "math_verify", "peft", "datasets", "reasoning_gym", "matplotlib", "pandas"}
    done = process(
        "-c", f"import sys, grpo_pl.config.components; print(sorted({heavy} & sys.modules.keys()))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_what_a_config_names_by_a_short_name_is_of_one_of_these_kinds() -> None:
    assert {cls.__name__ for cls in COMPONENTS} == {
        *("PromptSource", "Curriculum", "CallFormat", "Environment", "RolloutEngine", "WeightTransfer"),
        *("ModelBuilder", "ReferenceUpdate"),
        *("RewardFunction", "RewardTransform", "AdvantageEstimator", "Aggregation"),
        *("LossTerm", "TokenMask", "MismatchCorrection", "Alarm", "RewardObjective"),
    }
