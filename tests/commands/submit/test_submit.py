import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Refused
from helpers.repository import ROOT

from grpo_pl.__main__ import main
from grpo_pl.commands.submit.script import TEMPLATES, fill

Submit = Callable[..., None]
NAMES = ("one_node", "many_nodes", "server_nodes")


@pytest.fixture
def submit(tiny_model: Path, tmp_path: Path) -> Submit:
    """Runs `grpo_pl submit` on configs/tiny.yaml for the folder `run` of the test's."""

    def run(*arguments: object) -> None:
        fixed = ("--config", ROOT / "configs" / "tiny.yaml", "--pretrained", tiny_model)
        folder = ("--trainer.default_root_dir", tmp_path / "run", "--data.prompts_per_iteration", 96)
        main(["submit", *map(str, (*fixed, *folder, *arguments))])

    return run


@pytest.fixture
def shown(submit: Submit, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The job that a dry run shows, a valid shell script."""

    def run(*arguments: object) -> str:
        submit("--dry-run", *arguments)
        script = capsys.readouterr().out
        assert script.startswith("#!/usr/bin/env bash\n#SBATCH ")
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        return script

    return run


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (?:--)?(.+)$", script, re.MULTILINE)


def test_a_dry_run_shows_the_job_and_changes_nothing(shown: Callable[..., str], tmp_path: Path) -> None:
    script = shown("--nodes", 4, "--time", "2:00:00", "--partition", "long", "--sbatch", "qos=high")
    expected = {
        *("nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "time=2:00:00", "partition=long", "qos=high"),
        *("job-name=run", f"output={tmp_path}/run/slurm-%j.out", f"chdir={Path.cwd()}", "requeue"),
        *("open-mode=append", "signal=USR1@900"),
    }
    assert expected < set(directives(script))
    assert f"set -- --config {tmp_path}/run/config.yaml" in script
    assert 'python -m grpo_pl fit "$@"' in script
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "strategy", sorted((ROOT / "configs" / "strategy").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_strategy_is_checked_without_its_gpus(shown: Callable[..., str], strategy: Path) -> None:
    nodes = 1 if strategy.stem == "single" else 2
    assert "gpus-per-node=8" in directives(shown("--nodes", nodes, "--config", strategy))


def test_one_node_and_many_have_their_own_template(shown: Callable[..., str]) -> None:
    for nodes, name in ((1, "one_node"), (2, "many_nodes")):
        body = (TEMPLATES / f"{name}.sbatch").read_text().split("set -euo pipefail\n")[1]
        assert shown("--nodes", nodes).endswith(body)


def test_without_gpus_a_node_has_the_ranks_of_the_config(shown: Callable[..., str]) -> None:
    script = directives(shown("--nodes", 2, "--gpus-per-node", 0, "--trainer.devices", 3))
    assert "ntasks-per-node=3" in script
    assert not [line for line in script if line.startswith("gpus")]


def test_each_part_of_a_heterogeneous_job_has_its_own_directives() -> None:
    parts = [{"nodes": "4", "partition": "a"}, {"nodes": "9", "partition": "b", "gpus-per-node": None}]
    train, serve = fill("server_nodes", parts, ["export X=1"]).split("#SBATCH hetjob\n")
    assert {"nodes=4", "partition=a", "gpus-per-node=8"} < set(directives(train))
    assert {"nodes=9", "partition=b"} < set(directives(serve))
    assert "gpus-per-node" not in "".join(directives(serve))
    assert serve.index("partition=b") < serve.index("set -euo pipefail\nexport X=1\n")


@pytest.mark.parametrize("name", NAMES)
def test_the_templates_that_people_submit_by_hand_are_those_that_submit_fills_in(name: str) -> None:
    assert (ROOT / "tools" / "slurm" / f"{name}.sbatch").resolve() == TEMPLATES / f"{name}.sbatch"
    subprocess.run(["bash", "-n", TEMPLATES / f"{name}.sbatch"], check=True)


def test_there_is_no_other_template() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.sbatch")} == set(NAMES)


MISTAKES = {
    "a config of fit": (("--nodes", 2, "--trainer.max_epoch", 3), "Did you mean trainer.max_epochs"),
    "components that do not go together": (("--nodes", 2, "--model.advantage", "GAE"), "needs a critic"),
    "prompts that the ranks cannot share": (
        ("--nodes", 2, "--gpus-per-node", 4, "--data.prompts_per_iteration", 4),
        "data.prompts_per_iteration=4 cannot be shared out among 8 ranks",
    ),
    "no nodes": ((), "submit: the following arguments are required: --nodes"),
    "nodes": (("--nodes", 0), "submit: --nodes=0: expected 1 or more"),
    "a word for nodes": (("--nodes", "two"), "submit: argument --nodes: invalid int value: 'two'"),
    **{
        f"{words!r} for sbatch": (
            ("--nodes", 1, f"--sbatch={words}"),
            "submit: argument --sbatch: expected NAME=VALUE such as qos=high, got ",
        )
        for words in ("foo", "qos=", "=high", "--qos=high", "qos=a\n#SBATCH --x=y")
    },
    "devices": (
        ("--nodes", 2, "--gpus-per-node", 0, "--trainer.devices", "auto"),
        "trainer.devices=auto: .* set it",
    ),
    "servers without an engine for them": (("--nodes", 2, "--server-nodes", 1), "no option data.engine.urls"),
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_before_anything_is_submitted(
    submit: Submit,
    refused: Refused,
    tmp_path: Path,
    arguments: tuple[object, ...],
    sentence: str,
) -> None:
    assert re.search(sentence, refused(submit, *arguments))
    assert not (tmp_path / "run").exists()


def test_where_there_is_no_slurm_nothing_is_written(
    submit: Submit, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no sbatch" in refused(submit, "--nodes", 2)
    assert not (tmp_path / "run").exists()
