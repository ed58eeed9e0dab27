"""Components as a user writes them: those of the README run, and what one easily forgets is said."""

import inspect
import sys
from pathlib import Path

import pytest
from helpers import own_components
from helpers.commands import Fit, command
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION, column

ONE = ("--trainer.max_epochs", 1, *NO_VALIDATION)


def own(**classes: str) -> list[str]:
    return [word for key, name in classes.items() for word in (f"--model.{key}", name)]


def test_the_components_of_the_readme_run_together(fit: Fit) -> None:
    named = {"loss": "Power", "correction": "Bounded", "advantage": "OverAll"}
    paths = {key: f"helpers.own_components.{name}" for key, name in named.items()}
    pull = ("--model.terms.pull", "helpers.own_components.Pull", "--model.loss.power", 0.3)
    folder = fit(*ONE, *own(**paths), *pull)
    assert column(folder, "sync/out") == [0.0]
    assert column(folder, "train/ratio")[0] == pytest.approx(1.0, abs=0.05)
    assert column(folder, "train/grad_norm")[0] > 0


def test_a_class_in_the_folder_that_one_starts_in_is_found_by_the_script_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in_this_folder.py").write_text(inspect.getsource(own_components))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    tiny = ROOT / "configs" / "tiny.yaml"
    with pytest.raises(SystemExit) as end:
        command("fit", "--config", tiny, "--model.loss", "in_this_folder.Power", "--print_config")
    assert not end.value.code


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("correction", "Silent", "it needs `rejects = True`"),
        ("terms.mine", "Bare", "the term mine gives no TokenLoss"),
    ],
)
def test_what_is_easily_forgotten_is_said(fit: Fit, key: str, name: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        fit(*ONE, *own(**{key: f"helpers.forgetful.{name}"}))
