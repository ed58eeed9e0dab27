"""What a command imports, and what it leaves alone until it is needed."""

import subprocess
import sys

from repository import ROOT


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_lightning_is_imported_without_the_libraries_of_metrics_that_nobody_asked_for() -> None:
    code = (
        "import sys, grpo_pl, lightning.pytorch; print(*{'transformers', 'scipy', 'pandas'} & {*sys.modules})"
    )
    assert python(code) == ""


def test_torchmetrics_is_all_there_for_who_asks() -> None:
    code = """
import grpo_pl, torchmetrics
from lightning.pytorch.core.module import Metric
from torchmetrics.text import BERTScore
assert issubclass(BERTScore, Metric) and issubclass(torchmetrics.Accuracy, torchmetrics.Metric)
assert torchmetrics.Metric is Metric and torchmetrics.functional.accuracy
print(torchmetrics.__version__)"""
    assert python(code)
