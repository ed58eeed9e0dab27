"""What a dry run says of a study's power, and what is settled at a look."""

import math
import re
import shutil
from pathlib import Path
from statistics import stdev, variance
from typing import Any

import pytest
from helpers.commands import Refused, command
from helpers.made_up import write_run
from helpers.repository import ROOT

from grpo_pl.commands.ablate.forecast import forecast, spread
from grpo_pl.commands.ablate.looks import conclusion, decide, section, settled
from grpo_pl.commands.ablate.study import Study
from grpo_pl.commands.compare.comparison import compare
from grpo_pl.commands.compare.statistics import Interval
from grpo_pl.commands.compare.statistics.power import detectable, pairs_needed
from grpo_pl.commands.compare.statistics.sequential import look_levels, repeated_interval

GRPO = {1: 0.50, 2: 0.52, 3: 0.51, 4: 0.56}
NO_KL = {1: 0.52, 2: 0.50, 3: 0.55, 4: 0.60}
APART = [NO_KL[seed] - GRPO[seed] for seed in GRPO]


def made_up(out: Path, config: dict[str, Any], values: dict[str, dict[int, float]]) -> Path:
    """A study of runs that ended with these accuracies."""
    changes: list[dict[str, Any]] = [
        {},
        {"model.kl": None},
        {"data.update_epochs": 2},
        {"data.group_size": 2},
    ]
    for i, (name, ends) in enumerate(values.items()):
        for seed, value in ends.items():
            folder = out / name / f"seed-{seed}"
            write_run(folder, config, seed=seed, accuracies=[0.25, value], changes=changes[i])
    return out


def study(*variants: str, seeds: int = 10, **more: Any) -> Study:
    names = variants or ("grpo", "no_kl")
    return Study(
        Path("study.yaml"),
        {name: [] for name in names},
        list(range(1, seeds + 1)),
        None,
        "val/accuracy",
        **more,
    )


@pytest.fixture(scope="module")
def pilot(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("pilot"), config, {"grpo": GRPO, "no_kl": NO_KL})


def test_a_dry_run_says_what_the_study_will_find_from_the_pairs_of_a_pilot(
    pilot: Path, tmp_path: Path
) -> None:
    deviation = stdev(APART)
    said = forecast(study("grpo", "no_kl", "critic"), pilot, tmp_path)
    assert f"vary over seeds by {deviation:.3f} (95 % " in said[0]
    assert "few seeds" in said[0]
    found = detectable(deviation, 10, 0.05 / 2)
    assert (
        f"With 10 seeds and 2 comparisons, a difference of {found:.3f} is found with probability 0.8"
        in said[1]
    )
    needed = [pairs_needed(difference, deviation, 0.05 / 2) for difference in (0.02, 0.05, 0.1)]
    assert [int(re.findall(r"needs ([\d,]+) seeds", line)[0].replace(",", "")) for line in said[2:]] == needed


def test_a_study_names_the_differences_it_is_asked_about(pilot: Path, tmp_path: Path) -> None:
    said = forecast(study(detect=(0.03,)), pilot, tmp_path)
    assert said[2].startswith("A difference of 0.03 needs ")
    assert len(said) == 3
    assert forecast(study(seeds=1), pilot, tmp_path)[1] == "One seed finds no difference, however large"


def test_looks_cost_a_little_power(pilot: Path, tmp_path: Path) -> None:
    found = detectable(stdev(APART), 10, look_levels((5, 10))[-1])
    assert f"a difference of {found:.3f} is" in forecast(study(looks=(5, 10)), pilot, tmp_path)[1]


def test_the_runs_in_the_study_s_folder_are_a_pilot_too(pilot: Path, tmp_path: Path) -> None:
    assert "Power, from" in forecast(study(), None, pilot)[0]
    unknown = f"Power: not known, for {tmp_path} has no variant that ended with two seeds"
    assert forecast(study(), None, tmp_path)[0].startswith(unknown)
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "seed-1").symlink_to(pilot / "grpo" / "seed-1")
    (tmp_path / "grpo" / "seed-2").mkdir()
    shutil.copy(pilot / "grpo" / "seed-2" / "config.yaml", tmp_path / "grpo" / "seed-2")  # it has only begun
    assert forecast(study(), None, tmp_path)[0].startswith(unknown)


def test_runs_of_one_variant_are_taken_for_unpaired(config: dict[str, Any], tmp_path: Path) -> None:
    measured = spread(study(), compare(made_up(tmp_path, config, {"grpo": GRPO})))
    assert measured is not None
    assert measured.deviation == pytest.approx(stdev(GRPO.values()) * math.sqrt(2))
    assert measured.free == 3


def test_a_main_effect_of_eight_cells_varies_half_as_much_as_a_difference_of_two(pilot: Path) -> None:
    cells = [f"a={a},b={b},c={c}" for a in "01" for b in "01" for c in "01"]
    measured = spread(study(*cells), compare(pilot))
    assert measured is not None
    assert measured.deviation == pytest.approx(stdev(APART) / 2)
    assert study(*cells).comparisons == 3


def test_a_factorial_pilot_gives_the_deviation_of_its_main_effects(
    config: dict[str, Any], tmp_path: Path
) -> None:
    both = {1: 0.40, 2: 0.45, 3: 0.41, 4: 0.42}
    values = {"a=0,b=0": GRPO, "a=0,b=1": NO_KL, "a=1,b=0": GRPO, "a=1,b=1": both}
    measured = spread(study(*values), compare(made_up(tmp_path, config, values)))
    of_a = [(both[seed] - NO_KL[seed]) / 2 for seed in GRPO]
    of_b = [(NO_KL[seed] + both[seed] - 2 * GRPO[seed]) / 2 for seed in GRPO]
    assert measured is not None
    assert measured.deviation == pytest.approx(math.sqrt((variance(of_a) + variance(of_b)) / 2))
    assert measured.free == 6


def test_a_pilot_that_tells_nothing_is_refused(
    config: dict[str, Any], tmp_path: Path, weightless: Path, refused: Refused
) -> None:
    made_up(tmp_path / "pilot", config, {"grpo": {1: 0.5}})
    tiny = ROOT / "configs" / "tiny.yaml"
    path = tmp_path / "study.yaml"
    path.write_text(f"base: {tiny}\nvariants: {{a: {{}}}}\n")
    words = (path, "--dry-run", "--pilot", tmp_path / "pilot", "--pretrained", weightless)
    assert "expected two finished runs or more" in refused(command, "ablate", *words)


def test_at_a_look_only_what_its_stricter_interval_shows_is_settled(pilot: Path) -> None:
    comparison = compare(pilot)
    asked = study(seeds=8, looks=(4, 8), margin=0.5)
    (decision,) = decide(asked, comparison, 4)
    assert decision.interval.mean == pytest.approx(sum(APART) / 4)
    level = look_levels((4, 8))[0]
    assert level < 0.005
    assert decision.interval.high - decision.interval.mean > 3 * stdev(APART) / 2, "wider than at the end"
    assert decision.conclusion == "within +-0.5"
    assert settled(asked, [decision])
    three = study("grpo", "no_kl", "critic", seeds=8, looks=(4, 8))
    assert not settled(three, [decision]), "a comparison without seeds is open"
    (of_two,) = decide(three, comparison, 4)
    assert of_two.interval == pytest.approx(repeated_interval(APART, look_levels((4, 8), 0.05 / 2)[0]))
    text = section(asked, [decision], 4)
    assert text.text == ["Ended after 4 of 8 seeds: every comparison is settled."]
    open_ = study(seeds=8, looks=(4, 8))
    assert section(open_, decide(open_, comparison, 8), 8).text == [
        "Ended after 8 of 8 seeds: these are all."
    ]


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.01, 0.2, None, "higher"),
        (-0.2, -0.01, 0.05, "lower"),
        (-0.01, 0.04, 0.05, "within +-0.05"),
        (-0.01, 0.04, None, "not settled"),
        (-0.01, 0.06, 0.05, "not settled"),
    ],
)
def test_a_comparison_is_settled_by_its_interval(
    low: float, high: float, margin: float | None, expected: str
) -> None:
    assert conclusion(Interval((low + high) / 2, low, high), margin) == expected
