"""Installed from a wheel, with no clone at hand, the commands work and find the configs by name."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from helpers.repository import ROOT

from grpo_pl import __version__

Run = Callable[..., str]
SOURCES = ("grpo_pl", "configs", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
COMMANDS = """
import sys
from grpo_pl import __main__
print(__main__.__file__, flush=True)
for words in sys.argv[1:]:
    __main__.main(words.split())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Built in a copy, for setuptools writes beside the sources."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for source in (ROOT / name for name in SOURCES):
        if source.is_dir():
            shutil.copytree(source, clone / source.name, symlinks=True)
        else:
            shutil.copy(source, clone)
    done = subprocess.run([sys.executable, "-c", BUILD, out], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ZipFile(next(out.glob("*.whl")))


@pytest.fixture(scope="module")
def site(wheel: ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that it is installed into."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def installed(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs commands, in one process, in a folder that at first is empty, and returns what they say."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*commands: str, code: int = 0) -> str:
        words = [sys.executable, "-c", COMMANDS, *commands]
        done = subprocess.run(words, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert done.stdout.splitlines()[0] == str(site / "grpo_pl" / "__main__.py")
        return done.stderr if code else done.stdout.partition("\n")[2]

    return run


def test_it_holds_every_file_of_the_package_and_every_config(wheel: ZipFile) -> None:
    package = [path.relative_to(ROOT) for path in (ROOT / "grpo_pl").rglob("*") if path.is_file()]
    files = {path.as_posix() for path in package if path.suffix not in {".pyc", ".md"}}
    names = [path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.*")]
    configs = {f"grpo_pl/config/shipped/{name.as_posix()}" for name in names if name.suffix != ".md"}
    assert {"grpo_pl/commands/compare/report/page.css", "grpo_pl/commands/submit/one_node.sbatch"} <= files
    assert files | configs == {name for name in wheel.namelist() if name.startswith("grpo_pl/")}
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"grpo_pl"}


def test_its_description_is_the_readme_and_its_command_is_grpo_pl(wheel: ZipFile) -> None:
    folder = next(name for name in wheel.namelist() if name.endswith("/METADATA")).rpartition("/")[0]
    about = message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert about["Description-Content-Type"] == "text/markdown"
    description = about.get_payload(decode=True)
    assert isinstance(description, bytes)
    assert description.decode().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert b"grpo_pl = grpo_pl.__main__:main" in wheel.read(f"{folder}/entry_points.txt")


def test_a_name_of_no_config_is_answered_with_the_nearest(installed: Run) -> None:
    answer = installed("fit --config quikstart", code=2)
    assert answer == "grpo_pl: error: config: there is no file quikstart. Did you mean quickstart?\n"


def test_a_tiny_model_is_made_planned_and_trained_by_configs_of_the_wheel(installed: Run) -> None:
    config = "--config tiny --config=configs/ablations/cispo.yaml --pretrained tiny"
    once = "--trainer.max_epochs=1 --trainer.default_root_dir=run --data.val=null"
    said = installed("--version", "tiny-model tiny", f"plan {config}", f"fit {config} {once}")
    assert said.startswith(f"grpo_pl {__version__}\ntiny\n")
    assert "generates at most 256 tokens" in said
    assert "iteration   1" in said
    assert installed("export run/checkpoints/last.ckpt model") == "model\n"


def test_a_config_is_read_by_its_name(installed: Run) -> None:
    config = yaml.safe_load(installed("fit --config quickstart --print_config"))
    assert config["trainer"]["default_root_dir"] == "runs/quickstart"
