"""What the READMEs say is true: commands parse, links and paths exist, printed code is the code that runs."""

import ast
import inspect
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from helpers import own_components
from helpers.repository import ROOT

from grpo_pl import loop
from grpo_pl.__main__ import main
from grpo_pl.advantages.group import WinRate
from grpo_pl.commands.table import COMMANDS
from grpo_pl.rollout.server.__main__ import serve

FOLDERS = ("configs", "findings", "grpo_pl", "tests", "tools")
READMES = [
    ROOT / "README.md",
    *(path for name in FOLDERS for path in sorted((ROOT / name).rglob("README.md"))),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
FORMS = ("python -m grpo_pl ", "grpo_pl ")
OWN_OPTIONS = re.compile(r"^ {2}(--\S.*?)(?: {2}|$)", re.MULTILINE)
"""In what `--help` of a command prints."""
OF_A_RUN = {"config.yaml", "job.sbatch"}
"""Files that a run writes."""


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


def spans(text: str) -> list[str]:
    return SPAN.findall(FENCE.sub("", text))


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of each command in the text's shell blocks."""
    for block in blocks(text, "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def commands() -> Iterator[list[str]]:
    """What follows grpo_pl in the commands of all READMEs, in blocks, console lines and code spans."""
    for path in READMES:
        text = path.read_text()
        lines = [shlex.join(words) for words in shell_lines(text)]
        lines += [
            line[2:] for block in blocks(text, "") for line in block.splitlines() if line.startswith("$ ")
        ]
        lines += [span for span in spans(text) if not span.endswith("...")]
        for line in lines:
            if form := next((form for form in FORMS if line.startswith(form)), None):
                yield shlex.split(line.removeprefix(form))


def ablations() -> Iterator[list[str]]:
    """The options in the table of ablations."""
    section = (ROOT / "README.md").read_text().partition("## Ablations")[2].partition("\n## ")[0]
    for row in section.splitlines():
        yield from (shlex.split(span) for span in spans(row) if span.startswith("--"))


COMMAND_LINES = sorted({tuple(words) for words in commands()})
ABLATIONS = sorted({tuple(words) for words in ablations()})


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with this repository's configs and the files that the placeholders name."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "quickstart.yaml", tmp_path / "runs" / "quickstart" / "config.yaml")
    shutil.copy(ROOT / "configs" / "grpo.yaml", tmp_path / "A.yaml")
    shutil.copy(ROOT / "tests" / "helpers" / "own_components.py", tmp_path / "my_file.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


PARSED: set[tuple[str, ...]] = set()
"""Command lines of `fit` that have been parsed: several READMEs have the same."""


def parse(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Have the parser of a command read a line with a config."""
    if words not in PARSED:
        assert "class_path" in printed(capsys, *words, "--print_config")
        PARSED.add(words)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints that must end well."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    captured = capsys.readouterr()
    assert not end.value.code, captured.err
    return captured.out


def without_own(words: list[str], own: set[str]) -> list[str]:
    """The options of `fit` among a command's: those that its own help does not list."""
    rest: list[str] = []
    option = ""
    for word in words:
        if word.startswith("--") and " " not in word:
            option = word.partition("=")[0]
            if option not in own:
                rest.append(word)
        elif option not in own and rest:
            rest.append(word)
    return rest


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 2500


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_a_command_in_a_readme_parses(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    command, *options = words
    assert command in COMMANDS
    if command in ("fit", "validate", "plan") and options:
        parse(capsys, *words)
        return
    listed = " ".join(OWN_OPTIONS.findall(printed(capsys, *words, "--help")))
    if for_fit := without_own(options, set(re.findall(r"--[\w-]+", listed))):
        base = () if "--config" in for_fit else ("--config", "configs/grpo.yaml")
        parse(capsys, "fit", *base, *for_fit)


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("words", ABLATIONS, ids=" ".join)
def test_an_ablation_in_readme_parses(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    parse(capsys, "fit", "--config", "configs/grpo.yaml", *words)


def test_a_server_takes_the_options_that_a_readme_gives_it() -> None:
    lines = [words for path in READMES for words in shell_lines(path.read_text())]
    servers = [words[3:] for words in lines if words[:3] == ["python", "-m", "grpo_pl.rollout.server"]]
    assert servers
    options = {word.removeprefix("--") for words in servers for word in words if word.startswith("--")}
    assert options <= inspect.signature(serve).parameters.keys()


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_that_a_readme_names_exist(path: Path) -> None:
    text = path.read_text()
    words = [word for line in shell_lines(text) for word in line] + spans(text)
    named = [word for span in words for word in span.split() if word.split("/")[0] in FOLDERS and "/" in word]
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [link for link in LINK.findall(text) if not (path.parent / link).exists()] == []
    known = {file.name for name in FOLDERS for file in (ROOT / name).rglob("*.*")} | OF_A_RUN
    alone = [span for span in spans(text) if re.fullmatch(r"\w+\.(py|yaml|sh|sbatch)", span)]
    assert [name for name in alone if name not in known] == []


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_readme_imports_exists(path: Path) -> None:
    text = path.read_text()
    for block in blocks(text, "python"):
        for module, names in re.findall(r"^from (grpo_pl[\w.]*) import (.*)$", block, re.MULTILINE):
            face = import_module(module)
            assert {name.strip() for name in names.split(",")} <= {*vars(face), *getattr(face, "__all__", ())}
    for name in spans(text):
        if re.fullmatch(r"grpo_pl(\.\w+)+\.[A-Z]\w+", name):
            module, _, attribute = name.rpartition(".")
            assert hasattr(import_module(module), attribute), name


def test_the_loop_that_readme_prints_is_the_loop_that_runs() -> None:
    printed_loop, *_ = blocks((ROOT / "README.md").read_text(), "python")
    source = textwrap.dedent(inspect.getsource(loop.experience_stream))
    (function,) = ast.parse(source).body
    (node,) = (one for one in ast.walk(function) if isinstance(one, ast.For) and "yield" in ast.unparse(one))
    assert node.end_lineno is not None
    runs = source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    assert printed_loop == textwrap.dedent("".join(runs))


def test_the_component_that_readme_prints_is_the_code() -> None:
    _, component, *_ = blocks((ROOT / "README.md").read_text(), "python")
    uncommented = re.sub(r"  +#.*", "", component)
    (shown,), (code,) = ast.parse(uncommented).body, ast.parse(inspect.getsource(WinRate)).body
    assert isinstance(code, ast.ClassDef)
    code.body = code.body[1:]  # the docstring
    assert ast.unparse(shown) == ast.unparse(code)


def test_the_file_of_own_components_that_a_readme_prints_is_the_one_that_tests_run() -> None:
    (printed_file,) = blocks((ROOT / "grpo_pl" / "losses" / "README.md").read_text(), "python")
    assert inspect.getsource(own_components).endswith(f"\n\n{printed_file}")
