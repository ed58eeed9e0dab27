"""The `config.yaml` of a run of an older version: it loads, or one sentence says which version wrote it."""

import re
from pathlib import Path

import pytest
from helpers.commands import OverARun, Refused
from helpers.repository import ROOT

from grpo_pl.__main__ import main

OLD = ROOT / "tests" / "config" / "run_of_0.1.0.yaml"
"""As 0.1.0 wrote it for configs/tiny.yaml; KLInLoss stood in grpo_pl.regularizers."""
GONE = "      row_tokens: null\n"
"""An argument of models that there is no more."""


def test_a_class_that_has_moved_is_named_with_its_new_place_and_the_old_version(
    refused: Refused, over_a_run: OverARun, tmp_path: Path
) -> None:
    (tmp_path / OLD.name).write_text(OLD.read_text().replace(GONE, ""))
    expected = (
        r"error: model\.kl: there is no grpo_pl\.regularizers\.KLInLoss; write grpo_pl\.losses\.kl\.KLInLoss "
        r"\(grpo_pl 0\.1\.0 wrote .*run_of_0\.1\.0\.yaml, and this is "
    )
    assert re.search(expected, refused(over_a_run, f"--config {tmp_path / OLD.name}"))


def test_the_rest_of_it_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = OLD.read_text().replace("grpo_pl.regularizers.KLInLoss", "grpo_pl.losses.kl.KLInLoss")
    (tmp_path / "config.yaml").write_text(text.replace(GONE, ""))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(tmp_path / "config.yaml"), "--print_config"])
    assert end.value.code == 0
    assert "class_path: grpo_pl.losses.kl.KLInLoss" in capsys.readouterr().out


def test_an_argument_that_has_gone_is_named_with_the_old_version(
    refused: Refused, over_a_run: OverARun, tmp_path: Path
) -> None:
    text = OLD.read_text().replace("grpo_pl.regularizers.KLInLoss", "grpo_pl.losses.kl.KLInLoss")
    (tmp_path / "config.yaml").write_text(text)
    said = refused(over_a_run, f"--config {tmp_path / 'config.yaml'}")
    assert re.search(r"error: there is no option model\.policy\.row_tokens\..*\(grpo_pl 0\.1\.0 wrote", said)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("grpo_pl.regularizers.KLInLos", r"there is no .*KLInLos\. Did you mean KLInLoss\?"),
        ("grpo_pl.regularizers.Nothing", r"there is no grpo_pl\.regularizers\.Nothing$"),
    ],
)
def test_a_class_that_is_nowhere_is_answered_by_the_nearest(
    path: str, answer: str, refused: Refused, over_a_run: OverARun
) -> None:
    assert re.search(rf"error: model\.kl: {answer}", refused(over_a_run, f"--model.kl {path}"))
