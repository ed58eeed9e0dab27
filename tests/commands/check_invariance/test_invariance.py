"""check-invariance finds equal what is equal, and unequal what is not."""

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import Refused, command
from helpers.repository import ROOT
from safetensors.torch import save_file

from grpo_pl.__main__ import main
from grpo_pl.commands.check_invariance.ways import Variant, compare, variants
from grpo_pl.config.cli import configure

CONFIG = ROOT / "configs" / "tiny.yaml"


def compared(model: Path, out: Path, *arguments: str) -> list[dict]:
    """The rows of a comparison that finds everything equal."""
    critic = ("--model.critic", "ValueHead", "--model.advantage", "GAE", "--data.group_size", "8")
    with pytest.raises(SystemExit) as end:
        main(
            [
                *("check-invariance", "--config", str(CONFIG), "--pretrained", str(model)),
                *("--out", str(out), *critic, *arguments),
            ]
        )
    assert end.value.code == 0
    said = json.loads(out.read_text())
    measured = [row for row in said["rows"] if not row["note"]]
    assert max(row["relative_error"] for row in measured) == said["max_relative_error"] < 1e-5
    assert all(row["gradient_norm"] > 0 for row in measured)
    return measured


def test_one_rollout_has_the_same_gradient_in_one_process_however_it_is_cut(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three prompts cannot be shared out among the ranks that it would try."""
    cut = ("--data.prompts_per_iteration", "3", "--trainer.accumulate_grad_batches", "12")
    found = compared(tiny_model, tmp_path / "invariance.json", *cut)
    assert [(row["strategy"], row["micro_batches"]) for row in found] == [("single", 12), ("single", 24)]
    assert "single" in capsys.readouterr().out


@pytest.mark.slow
def test_one_rollout_has_the_same_gradient_however_models_are_divided(
    tiny_model: Path, tmp_path: Path
) -> None:
    cut = ("--data.prompts_per_iteration", "2", "--trainer.accumulate_grad_batches", "16")
    found = compared(tiny_model, tmp_path / "invariance.json", *cut)
    assert {(row["strategy"], row["ranks"]) for row in found} == {("single", 1), ("ddp", 2), ("fsdp2", 2)}


def test_what_is_compared_is_what_the_machine_can_run(tiny_model: Path) -> None:
    cli = configure(["--config", str(CONFIG), "--pretrained", str(tiny_model)])
    found = variants(cli, on_gpu=False)
    assert found[:3] == [Variant("single", 1, 2), Variant("single", 1, 4), Variant("single", 1, 8)]
    assert {v.ranks for v in found} == {1, 2, 4}
    assert {v.strategy for v in found if v.ranks > 1} == {"ddp", "fsdp2", "fsdp"}


def test_the_distance_of_two_gradients(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, tmp_path / "0")
    save_file({"a": torch.tensor([3.0]), "b": torch.tensor([4.5])}, tmp_path / "1")
    assert compare(tmp_path / "1", tmp_path / "0") == (pytest.approx((9 + 4.5**2) ** 0.5), pytest.approx(0.1))


def test_a_rollout_without_a_gradient_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "0")
    with pytest.raises(ValueError, match=r"data\.seed"):
        compare(tmp_path / "0", tmp_path / "0")


def test_what_fit_refuses_it_refuses(tiny_model: Path, refused: Refused) -> None:
    words = ("check-invariance", "--config", CONFIG, "--pretrained", tiny_model, "--data.seeed", 1)
    assert "data.seed" in refused(command, *words)
