"""What several test files need: tiny models, a run of the command line, and the demo model.

Nothing of grpo_pl is imported before a fixture asks for it: the jaxtyping flag of pyproject.toml comes first.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from helpers.repository import ROOT
from hypothesis import HealthCheck, settings

settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")  # a slow machine is no failure

EARLIER_RUN = {
    "metrics.csv": "iteration\n0\n",
    "config.yaml": "data: {}\n",
    "checkpoints/last.ckpt": "weights",
}
"""What stands in the run's folder where a command is refused."""
BEGUN_FIRST = {
    *("test_engines.py", "test_overlapped.py", "test_strategies.py", "test_fit.py", "test_preemption.py"),
    *("test_bench.py", "test_invariance.py", "test_lora.py"),
}
"""The files that take minutes: begun last, one of them would leave the other process idle."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a SLURM or much time, unless its marker is asked for; the longest files first."""
    items.sort(key=lambda item: item.path.name not in BEGUN_FIRST)
    for marker in {"slow", "slurm"} - set(config.option.markexpr.split()):
        left_out = {item for item in items if item.get_closest_marker(marker)}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 0.2 M parameters with tied embeddings."""
    from grpo_pl.commands.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an LM head of its own."""
    from grpo_pl.commands.tiny_model import make_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny-untied"
    return make_tiny_model(folder, tied=False)


@pytest.fixture(scope="session")
def fit(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs `grpo_pl fit` on configs/tiny.yaml in this process and returns the run's folder.

    Arguments are those of the command line. `root` is the run's folder, a new one where it is not given.
    """
    import torch

    from grpo_pl.__main__ import main

    def run(*arguments: object, root: Path | None = None, pretrained: Path = tiny_model) -> Path:
        root = root or tmp_path_factory.mktemp("fit") / "run"
        command = ["fit", "--config", ROOT / "configs" / "tiny.yaml", "--pretrained", pretrained]
        command += ["--trainer.default_root_dir", root, *arguments]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # faster for a model this small, above all on a busy machine
        try:
            with patch.dict(os.environ):  # or the LOCAL_RANK of Lightning stays: the next run waits for ranks
                main([str(word) for word in command])
        finally:
            torch.set_num_threads(threads)
        return root

    return run


@pytest.fixture(scope="session")
def fit_on(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs `grpo_pl fit` as `fit` does, on so many ranks, each a forked process."""
    from helpers.rank_runs import run_ranks

    def run(ranks: int, *arguments: object, root: Path | None = None, pretrained: Path = tiny_model) -> Path:
        root = root or tmp_path_factory.mktemp("ranks") / "run"
        command = ["--config", ROOT / "configs" / "tiny.yaml", "--pretrained", pretrained]
        command += ["--trainer.default_root_dir", root, "--trainer.devices", ranks, *arguments]
        run_ranks(ranks, [str(word) for word in command], root.parent)
        return root

    return run


@pytest.fixture
def refused(fit: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `grpo_pl fit` as `fit` does, with a mistake in it, and returns the sentence it is refused with."""
    from helpers.run_results import said

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            fit(*arguments)
        assert end.value.code == 2
        return said(capsys)

    return run


@pytest.fixture
def stopped(fit: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `grpo_pl fit` to the end that a guard or an alarm makes of it, and returns the last sentence."""

    def run(*arguments: object, root: Path | None = None) -> str:
        with pytest.raises(SystemExit) as end:
            fit(*arguments, root=root)
        assert end.value.code == 1
        *_, last = capsys.readouterr().err.splitlines()
        assert last.startswith("grpo_pl: stopped: ")
        return last

    return run


@pytest.fixture
def ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs `grpo_pl fit` on configs/tiny.yaml in several processes and returns the run's folder."""

    def run(count: int, *arguments: object, root: Path | None = None, pretrained: Path = tiny_model) -> Path:
        root = root or tmp_path_factory.mktemp("ranks") / "run"
        command = [
            *(sys.executable, "-m", "grpo_pl", "fit", "--config", ROOT / "configs" / "tiny.yaml"),
            *("--pretrained", pretrained, "--trainer.default_root_dir", root, "--trainer.devices", count),
            *arguments,
        ]
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return root

    return run


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The real demo model, where tools/fetch_model.py has put it."""
    from grpo_pl.models.loading import cached_model_folder

    folder = cached_model_folder("HuggingFaceTB/SmolLM2-135M-Instruct")
    if not (folder / "config.json").is_file():
        pytest.fail(
            f"the demo model is not in {folder}: run python tools/fetch_model.py, as tools/test.sh does"
        )
    return folder


@pytest.fixture(scope="session")
def outcome_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a reward model of whole responses, with a random head."""
    from transformers import AutoModelForSequenceClassification

    return classifier(AutoModelForSequenceClassification, tiny_model, tmp_path_factory.mktemp("outcome"))


@pytest.fixture(scope="session")
def process_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a reward model of steps, with a random head."""
    from transformers import AutoModelForTokenClassification

    return classifier(AutoModelForTokenClassification, tiny_model, tmp_path_factory.mktemp("process"))


def classifier(auto: Any, trunk: Path, folder: Path, labels: int = 1) -> Path:
    """A checkpoint with the weights of a language model and a random head."""
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(1)
    auto.from_pretrained(trunk, num_labels=labels).save_pretrained(folder)
    AutoTokenizer.from_pretrained(trunk).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def weightless(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its weights: what is refused before a model is loaded does not miss them."""
    folder = tmp_path_factory.mktemp("weightless") / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def refusal(weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused and checks that its sentence matches.

    `{here}` in the arguments is a folder of the test's own. The run's folder holds an earlier run. `started`
    says that the refusal comes from a run that has begun, which has moved that one aside.
    """
    from helpers.run_results import said

    from grpo_pl.__main__ import main

    def run(
        arguments: str,
        sentence: str,
        command: str = "fit",
        pretrained: Path = weightless,
        started: bool = False,
    ) -> str:
        folder = tmp_path / "run"
        for name, text in EARLIER_RUN.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        base = ["--config", str(ROOT / "configs" / "tiny.yaml"), "--pretrained", str(pretrained)]
        words = shlex.split(arguments.replace("{here}", str(tmp_path)))
        with pytest.raises(SystemExit) as end:
            main([command, *base, "--trainer.default_root_dir", str(folder), *words])
        assert end.value.code == 2
        text = said(capsys)
        assert re.search(sentence, text), text
        if not started:
            assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(EARLIER_RUN)
            assert all((folder / name).read_text() == content for name, content in EARLIER_RUN.items())
            assert not (tmp_path / "run.1").exists()
        return text

    return run
