"""What several test files need: tiny models, a run of the command line, and the demo model.

Nothing of grpo_pl is imported before a fixture asks for it: the jaxtyping flag of pyproject.toml comes first.
"""

import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from helpers.repository import ROOT
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")  # a slow machine is no failure

TINY = ROOT / "configs" / "tiny.yaml"
EARLIER_RUN = {
    "metrics.csv": "iteration\n0\n",
    "config.yaml": "data: {}\n",
    "checkpoints/last.ckpt": "weights",
}
"""Files of the earlier run that `over_a_run` must leave as they are."""
BEGUN_FIRST = {
    *("test_engines.py", "test_overlapped.py", "test_strategies.py", "test_fit.py", "test_preemption.py"),
    *("test_bench.py", "test_invariance.py", "test_lora.py", "test_configs.py", "test_curriculum_runs.py"),
    "test_distillation_runs.py",
}
"""The files that take minutes: begun last, one of them would leave the other process idle."""
STARTS_A_RUN = {"fit", "over_a_run", "train"}
"""The fixtures whose tests are marked `run`."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts a run; leave out what needs SLURM or much time, unless asked for; long files first."""
    for item in items:
        if STARTS_A_RUN.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.run)
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
    """Runs `grpo_pl fit` on configs/tiny.yaml and returns the run's folder.

    Arguments are those of the command line. `root` is the run's folder, a new one where it is not given. One
    rank runs in this process; of several each is a forked process. Curves are drawn only if asked for.
    """
    import torch
    from helpers.commands import command

    def run(
        *arguments: object, root: Path | None = None, pretrained: Path = tiny_model, ranks: int = 1
    ) -> Path:
        root = root or tmp_path_factory.mktemp("fit") / "run"
        words = ["--config", TINY, "--pretrained", pretrained, "--trainer.default_root_dir", root]
        words += ["--curves.draw", "false"]
        if ranks > 1:
            from helpers.rank_runs import run_ranks

            run_ranks([*words, "--trainer.devices", ranks, *arguments], ranks, root.parent)
            return root
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # faster for a model this small, above all on a busy machine
        try:
            with patch.dict(os.environ):  # or the LOCAL_RANK of Lightning stays: the next run waits for ranks
                command("fit", *words, *arguments)
        finally:
            torch.set_num_threads(threads)
        return root

    return run


@pytest.fixture(scope="module")
def forked_engines() -> Iterator[None]:
    """An OverlappedEngine's process is forked from one that has imported everything, as ranks are."""
    from helpers.rank_runs import forked

    forked()
    with patch("grpo_pl.rollout.overlapped.START_METHOD", "forkserver"):
        yield


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls what must be refused, with its arguments, and returns the sentence; the exit code is 2."""
    from helpers.commands import refusal_in

    def call(run: Callable[..., object], *arguments: object, **options: object) -> str:
        with pytest.raises(SystemExit) as end:
            run(*arguments, **options)
        assert end.value.code == 2
        return refusal_in(capsys.readouterr().err)

    return call


@pytest.fixture
def stopped(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls what a guard or an alarm must end, and returns the last sentence; the exit code is 1."""

    def call(run: Callable[..., object], *arguments: object, **options: object) -> str:
        with pytest.raises(SystemExit) as end:
            run(*arguments, **options)
        assert end.value.code == 1
        *_, last = capsys.readouterr().err.splitlines()
        assert last.startswith("grpo_pl: stopped: ")
        return last

    return call


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The real demo model, where tools/fetch_model.py has put it."""
    from grpo_pl.models.folders import cached_model_folder

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
def over_a_run(weightless: Path, tmp_path: Path) -> Callable[..., None]:
    """Runs a command on configs/tiny.yaml where an earlier run stands, and checks that this is left alone.

    The arguments are one string, in which `{here}` is a folder of the test's own. `started` says that the run
    itself begins, which moves the earlier one aside.
    """
    from helpers.commands import command

    def run(arguments: str, name: str = "fit", pretrained: Path = weightless, started: bool = False) -> None:
        folder = tmp_path / "run"
        for file, text in EARLIER_RUN.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        words = shlex.split(arguments.replace("{here}", str(tmp_path)))
        base = ("--config", TINY, "--pretrained", pretrained, "--trainer.default_root_dir", folder)
        try:
            command(name, *base, *words)
        finally:
            if not started:
                files = (path for path in folder.rglob("*") if path.is_file())
                assert {str(path.relative_to(folder)): path.read_text() for path in files} == EARLIER_RUN
                assert not (tmp_path / "run.1").exists()

    return run
