"""Settings tuned for each variant by pilot runs, and studies that end when all is settled."""

from pathlib import Path

import pytest
import yaml
from helpers.repository import ROOT
from helpers.studies import VARIANTS, write_study

from grpo_pl.__main__ import main
from grpo_pl.commands.ablate.pilots import Tuning, nested
from grpo_pl.commands.ablate.tuning import best, distance
from grpo_pl.commands.compare.report.tuning import Tuned, tuning, write_tuned

LR = "model.optimizer.init_args.lr"


def lr(value: float) -> tuple[tuple[str, float], ...]:
    return ((LR, value),)


def test_the_highest_mean_is_taken_and_of_equal_ones_the_nearest_in_logarithms() -> None:
    means: dict = {lr(1e-5): 0.3, lr(1e-4): 0.5, lr(1e-3): 0.4}
    assert best(means, {LR: 1e-5}) == lr(1e-4)
    tied = {lr(1e-5): 0.5, lr(4e-4): 0.5, lr(1e-3): 0.4}
    assert best(tied, {LR: 1e-4}) == lr(4e-4), "a factor of 4 is nearer than one of 10"
    assert best(tied, {}) == lr(1e-5), "the first, where the variant has no value of its own"
    assert distance(lr(1e-3), {LR: 1e-4}) == pytest.approx(2.302585)


def test_a_setting_whose_pilot_runs_did_not_all_end_is_not_taken() -> None:
    assert best({lr(1e-3): None, lr(1e-4): 0.1}, {LR: 1e-3}) == lr(1e-4)


def test_a_pilot_is_named_by_its_variant_and_its_setting() -> None:
    one = Tuning({LR: [3e-5, 1]}, [9], None)
    assert one.pilot("grpo", lr(3e-5)) == "variant=grpo,lr=3e-05"
    assert one.pilot("critic=none,kl=k3", lr(1)) == "critic=none,kl=k3,lr=1"
    assert one.pilot("lr=high,kl=k3", lr(1)) == f"lr=high,kl=k3,{LR}=1"
    two = Tuning({LR: [1, 2], "data.group_size": [4, 8]}, [9], None)
    assert [two.pilot("a", s) for s in two.settings()][1] == "variant=a,lr=1,group_size=8"
    setting = ((LR, 1), ("model.kl.init_args.coefficient", 0.1))
    expected = {"optimizer": {"init_args": {"lr": 1}}, "kl": {"init_args": {"coefficient": 0.1}}}
    assert nested(setting) == {"model": expected}


def test_the_report_shows_what_was_tried_also_by_an_earlier_command(tmp_path: Path) -> None:
    assert tuning(tmp_path) == []
    write_tuned({"grpo": Tuned({LR: 1e-4}, [({LR: 3e-5}, 0.4), ({LR: 1e-4}, 0.5)])}, tmp_path)
    write_tuned({"critic": Tuned({LR: 3e-5}, [({LR: 3e-5}, 0.4), ({LR: 1e-4}, None)])}, tmp_path)
    table = tuning(tmp_path)[0].tables[0]
    assert table.header == ["", "lr 3e-05", "lr 0.0001", "chosen"]
    assert table.rows == [["grpo", "0.400", "0.500", "lr 0.0001"], ["critic", "0.400", "-", "lr 3e-05"]]


@pytest.mark.timeout(1800)
def test_a_study_tunes_each_variant_ends_when_all_is_settled_and_goes_on_where_it_was(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "out"
    study = write_study(
        tmp_path,
        tiny_model,
        VARIANTS,
        seeds=[1, 2, 3],
        budget={"iterations": 2},
        metric="train/grad_norm",  # whatever varies
        margin=1e9,  # within which anything is
        tune={LR: [1e-3, 1e-2], "seeds": [101]},
        sequential={"looks": [2, 3]},
    )

    def ablate_here() -> str:
        with pytest.raises(SystemExit) as end:
            main(["ablate", str(study), "--out", str(out)])
        text = capsys.readouterr().out
        assert end.value.code == 0, text
        return text

    text = ablate_here()
    assert "4 pilot runs: 0 have ended" in text
    assert "Sequential: Ended after 2 of 3 seeds: every comparison is settled." in text
    assert "within +-1e+09" in text
    tuned = yaml.safe_load((out / "tuned.yaml").read_text())
    for name in VARIANTS:
        chosen = tuned[name]["chosen"][LR]
        means = {each[LR]: each["mean"] for each in tuned[name]["tried"]}
        assert means[chosen] == max(means.values())
        config = yaml.safe_load((out / name / "seed-2" / "config.yaml").read_text())
        assert config["model"]["optimizer"]["init_args"]["lr"] == chosen
        assert not (out / name / "seed-3").exists()
    assert (out / "tuning" / "variant=no_kl,lr=0.001" / "seed-101" / "ended.json").exists()
    report = (out / "report.md").read_text()
    assert report.index("## Sequential") < report.index("## What differs") < report.index("## Tuning")
    assert "seed-101" not in report
    text = ablate_here()
    assert "4 pilot runs: 4 have ended" in text
    assert "begins" not in text
    assert "goes on from" not in text
