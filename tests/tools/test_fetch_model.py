"""tools/fetch_model.py: what counts as a model, and how one is built once."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from helpers.repository import ROOT, load_tool

TOOLS = ROOT / "tools"

fetch_model = load_tool("fetch_model")


class CountingBuild:
    """Fills a folder with a model of two files and counts how often it was asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self, into):
        self.calls += 1
        (into / "config.json").write_text("{}")
        (into / "model.safetensors").write_bytes(b"weights" * 100)
        return "test"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "models" / "model"


@pytest.fixture
def build():
    return CountingBuild()


# fetch_model.py: what counts as a model


def test_a_complete_folder_is_returned_without_building(folder, build):
    assert fetch_model.fetch(folder, build) == folder
    assert fetch_model.fetch(folder, build) == folder
    assert build.calls == 1
    assert json.loads((folder / "checksums.json").read_text())["files"]["config.json"]["bytes"] == 2


def test_the_cached_path_is_the_last_line_on_stdout_and_comes_at_once(tmp_path, build):
    folder = tmp_path / "grpo_pl" / "models" / fetch_model.REPO_ID
    fetch_model.fetch(folder, build)
    done = subprocess.run(
        [sys.executable, TOOLS / "fetch_model.py"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout == f"{folder}\n"


@pytest.mark.parametrize("content", [b"weightz" * 100, b"weights"], ids=["same size", "cut short"])
def test_a_torn_file_is_detected_and_the_model_built_again(folder, build, content):
    fetch_model.fetch(folder, build)
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in fetch_model.why_incomplete(folder)
    fetch_model.fetch(folder, build)
    assert build.calls == 2
    assert fetch_model.why_incomplete(folder) is None


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "checksums.json"])
def test_a_folder_that_lacks_a_file_is_not_a_model(folder, build, lost):
    fetch_model.fetch(folder, build)
    (folder / lost).unlink()
    assert lost in fetch_model.why_incomplete(folder)


@pytest.mark.parametrize("marker", ["", "{", "[]", "{}", '{"files": {}}', '{"files": {"config.json": {}}}'])
def test_an_unreadable_or_empty_marker_is_not_a_model(folder, build, marker):
    fetch_model.fetch(folder, build)
    (folder / "checksums.json").write_text(marker)
    assert "checksums.json" in fetch_model.why_incomplete(folder)


def test_a_build_that_fails_leaves_nothing_behind(folder):
    def fails_half_way(into):
        (into / "config.json").write_text("{}")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        fetch_model.fetch(folder, fails_half_way)
    assert [path.name for path in folder.parent.iterdir()] == [".model.lock"]


def test_the_leftovers_of_a_killed_build_are_removed(folder, build):
    leftover = folder.parent / ".model.building-killed" / "model"
    leftover.mkdir(parents=True)
    (leftover / "config.json").write_text("{}")
    fetch_model.fetch(folder, build)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".model.lock", "model"]


def test_two_processes_build_the_model_once(folder, tmp_path):
    script = tmp_path / "fetch.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import importlib.util, pathlib, sys, time
            spec = importlib.util.spec_from_file_location("fetch_model", {str(TOOLS / "fetch_model.py")!r})
            fetch_model = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(fetch_model)

            def build(into):
                print("built")
                time.sleep(1)
                (into / "config.json").write_text("{{}}")
                return "test"

            fetch_model.fetch(pathlib.Path({str(folder)!r}), build)
            """
        )
    )
    both = [subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0] for process in both) == ["", "built\n"]
    assert [process.returncode for process in both] == [0, 0]


def test_an_error_is_one_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "grpo_pl").write_text("a file where a folder should be")
    done = subprocess.run(
        [sys.executable, TOOLS / "fetch_model.py"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("fetch_model: ")
