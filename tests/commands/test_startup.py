"""What a command imports, and what it leaves alone until it is needed."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from helpers.commands import Refused, command, process
from helpers.repository import ROOT

from grpo_pl.commands.fit.command import parsers_help
from grpo_pl.config import cli, option_names

TINY = ROOT / "configs" / "tiny.yaml"
HEAVY = ("vllm", "transformers", "datasets", "scipy", "pandas", "math_verify", "matplotlib.pyplot")
"""Besides torch and Lightning."""
LEFT_ALONE = """
import sys
from grpo_pl.__main__ import main
try:
    main(sys.argv[2:])
finally:
    print("imported:", *(name for name in sys.argv[1].split(",") if name in sys.modules))
"""
WITHOUT_TORCH = {
    "--version": "grpo_pl 0",
    "--help": "Compare runs in a table",
    "-h": "Compare runs in a table",
    "": "no command is given; expected one of fit",
    "fti": "there is no command 'fti'",
    "--config x.yaml fit": "fit must be the first word",
    "compare --help": "--metric",
    "compare --bse x": "compare: ",
    "ablate --help": "--jobs",
    "ablate no.yaml": "there is no study no.yaml",
    "submit --help": "--server-nodes",
    "submit --nodes few": "submit: argument --nodes: invalid int value",
    "rollout --help": "--out",
    "check-invariance --help": "--out",
    "doctor --help": "--engine",
    "export --help": "--pretrained",
    "reward-data --help": "--verifier",
    "tiny-model --help": "--untied",
    "prepare --help": "RECIPE",
    "prepare no.yaml": "there is no recipe no.yaml",
    "bench --help": "--peer",
    "fit --config quikstart": "there is no file quikstart. Did you mean quickstart?",
    "fit --config tiny --modle.loss X": "there is no option modle.loss. Did you mean model.loss?",
    "fit --help": "--trainer.max_epochs",
    "fit -h": "--trainer.max_epochs",
    "fit --config {empty}": "is empty; write settings",
    "fit --modle.loss X": "there is no option modle.loss. Did you mean model.loss?",
    "fit --config {tiny} --trianer.max_epochs 3": "there is no option trianer.max_epochs",
    "validate --config {misspelt}": "there is no option trainer.max_epoch. Did you mean trainer.max_epochs?",
    "submit --nodes 1 --data.sampling.min_p 1": "data.sampling has max_tokens, temperature",
    "rollout --out x --modle.loss X": "there is no option modle.loss",
    "check-invariance --modle.loss X": "there is no option modle.loss",
}
WITH_TORCH = {
    "fit --config {tiny} --data.group_size four": "data.group_size: expected int, got four",
    "fit --config {tiny} --model.kl.coefficient -1": "coefficient=-1.*0 or more",
    "fit --config {tiny} --model.loss Surrogate": "model.loss: expected one of",
    "submit --nodes 1 --config {tiny} --data.group_size four": "data.group_size: expected int, got four",
}
MISSPELT = (
    *("--modle.loss=X", "--trainer.max_epoch 3", "--pretraind x", "--data.sampling.min_p 1", "--foo"),
    *("--x.y.z 1", "--verson", "--model.lss X", "--data.engin X", "--job reward_model --data.group_size 2"),
    *("--metrics.x 1", "--fit.trainer.max_epochs 3", "--data.format.sytem x"),
)
MISSPELT_KEYS = (
    *("modle: {kl: null}", "foo: null", "metrics: null", "model.klx: 3", "data: {sampling: {temp: 1}}"),
    *("# grpo_pl==0.0.7\nmodel: {klx: null}", "trainer: {max_epoch: 3}"),
)
OPEN = (
    *("--model.loss.clip_lw 1", "--model.rewards.digit.init_args.patern x", "--trainer.callbacks+ X"),
    *("--model.loss.help", "--model.optimizer.lr 1", "--print_config", "-- --foo", "--data.val.path x"),
)


@pytest.fixture
def words(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "misspelt.yaml").write_text("trainer: {max_epoch: 3}")
    return {"tiny": TINY, "empty": tmp_path / "empty.yaml", "misspelt": tmp_path / "misspelt.yaml"}


@pytest.fixture(scope="module", autouse=True)
def _names_are_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands have run since the code changed."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for job, name in product(("policy", "reward_model"), ("fit", "validate")):
        with pytest.raises(SystemExit):
            cli.CLI(["--job", job, "--foo"], name)
    option_names.help_text("fit", lambda: parsers_help("fit"))
    yield
    patch.undo()


@pytest.mark.parametrize("command", WITHOUT_TORCH)
def test_what_needs_no_torch_is_answered_without_it(command: str, words: dict[str, Path]) -> None:
    heavy = ",".join((*HEAVY, "torch", "lightning", "jsonargparse"))
    done = process("-c", LEFT_ALONE, heavy, *command.format(**words).split())
    assert WITHOUT_TORCH[command] in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:"


@pytest.mark.parametrize("command", WITH_TORCH)
def test_a_config_is_refused_without_the_libraries_of_a_run(command: str, words: dict[str, Path]) -> None:
    heavy = [name for name in HEAVY if name != "matplotlib.pyplot"]  # torchmetrics has it for Lightning
    done = process("-c", LEFT_ALONE, ",".join(heavy), *command.format(**words).split())
    assert re.search(WITH_TORCH[command], done.stderr)
    assert done.stdout.splitlines()[-1].strip() == "imported:"


def test_torchmetrics_is_all_there_for_who_asks() -> None:
    code = """
import grpo_pl, torchmetrics
from lightning.pytorch.core.module import Metric
from torchmetrics.text import BERTScore
assert issubclass(BERTScore, Metric) and issubclass(torchmetrics.Accuracy, torchmetrics.Metric)
assert torchmetrics.Metric is Metric and torchmetrics.functional.accuracy
print(torchmetrics.__version__)"""
    done = process("-c", code)
    assert done.stdout, done.stderr


@pytest.mark.parametrize("wrong", [*MISSPELT, *MISSPELT_KEYS])
def test_a_misspelt_option_is_answered_as_the_parser_does(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (tmp_path / "own.yaml").write_text(wrong)
    more = wrong.split() if wrong in MISSPELT else ["--config", str(tmp_path / "own.yaml")]
    arguments = ["fit", *([] if "--job" in more else ["--config", str(TINY)]), *more]
    with monkeypatch.context() as patch:
        patch.setattr(cli, "CLI", lambda *_: None)
        quick = refused(command, *arguments)
    monkeypatch.setattr(option_names, "kept", lambda _: {})
    assert refused(command, *arguments) == quick


@pytest.mark.parametrize("words", OPEN)
def test_what_depends_on_a_component_is_left_to_the_parser(words: str) -> None:
    option_names.check_names("fit", ["--config", str(TINY), *words.split()])


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_config_of_ours_is_refused_by_its_names(config: Path) -> None:
    for name in ("fit", "validate"):
        job = "reward_model" if "reward_model.yaml" in config.read_text() else "policy"
        option_names.check_names(name, ["--job", job, "--config", str(config)])


def test_help_is_made_once_for_each_width_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def make() -> str:
        made.append(1)
        return f"help {len(made)}"

    found = []
    for columns in ("80", "120", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        found.append(option_names.help_text("fit", make))
    assert found == ["help 1", "help 2", "help 1"]


def test_names_of_other_code_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert option_names.kept("policy")
    monkeypatch.setattr(option_names, "state", lambda: "other")
    assert option_names.kept("policy") == {}
