"""What every wrong input must show: one sentence, exit code 2, no model read, nothing lost."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from refusals import Refusal

EARLIER_RUN = {
    "metrics.csv": "iteration\n0\n",
    "config.yaml": "data: {}\n",
    "checkpoints/last.ckpt": "weights",
}


@pytest.fixture(scope="session")
def weightless(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its weights: what is refused before a model is loaded does not miss them."""
    folder = tmp_path_factory.mktemp("weightless") / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def refusal(weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs a command that must be refused and checks that its sentence matches.

    `{here}` in the arguments is a folder of the test's own. The run's folder holds an earlier run. `started`
    says that the refusal comes from a run that has begun, which has moved that one aside.
    """
    from run_results import said

    from grpo_pl.__main__ import main

    root = Path(__file__).resolve().parents[2]

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
        base = ["--config", str(root / "configs" / "tiny.yaml"), "--pretrained", str(pretrained)]
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
