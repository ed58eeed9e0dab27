"""The import graph is a test: a folder stands in one row and imports from the rows above its own alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.repository import ROOT

PACKAGE = ROOT / "grpo_pl"
ROWS = (
    {"types", "functional", "system"},
    {"models"},
    {"prompts", "environments", "rewards", "advantages", "losses", "minibatches", "runs"},
    {"rollout"},
    {"loop", "training"},
    {"experience", "datamodule", "callbacks", "reward_modeling"},
    {"module"},
    {"config"},
    {"commands"},
    {"__main__"},
)
STAGES = {"prompts", "environments", "rollout", "rewards", "models", "advantages", "losses", "functional"}
"""None of them imports Lightning, nor do `loop` and `minibatches`."""
ONE_IMPORTER = {
    "vllm": {
        "rollout/vllm.py",
        "rollout/vllm_requests.py",
        *(f"rollout/server/{name}.py" for name in ("__main__", "receiver", "transfer")),
    },
    "transformers": {"models/loading.py", "commands/bench/peer.py"},
    "peft": {"models/adapted_layers.py"},
    "datasets": {"prompts/sources.py", "commands/bench/peer.py"},
    "reasoning_gym": {"prompts/procedural.py", "prompts/task_rows.py", "rewards/task_verifiers.py"},
    "textarena": {"environments/text_arena.py"},
    "skyrl_gym": {"environments/skyrl.py"},
    "verifiers": {"environments/verifiers_env.py"},
    "math_verify": {"rewards/mathematics.py"},
    "matplotlib": {
        "callbacks/curves.py",
        "commands/compare/figures.py",
        "commands/compare/forest.py",
        "commands/compare/panels.py",
    },
    "pandas": {"commands/compare/tidy.py"},
    "scipy": {
        f"commands/compare/statistics/{name}.py"
        for name in ("area", "bootstrap", "crossed", "over_seeds", "power", "sequential")
    },
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def row(name: str) -> int:
    rows = [i for i, names in enumerate(ROWS) if name in names]
    assert rows, f"{name} stands in no row of this test"
    return rows[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that a file imports, wherever in it, type checking apart."""
    if isinstance(tree, ast.If) and getattr(tree.test, "id", "") == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    if isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "a relative import"
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def imported(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_rows_above(path: Path) -> None:
    own = room(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("grpo_pl.")}
    for other in others - {own, "__version__"}:
        assert row(other) < row(own), f"{own} imports {other}, which does not stand above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_stage_knows_lightning(path: Path) -> None:
    if room(path) in STAGES | {"types", "loop", "minibatches"}:
        assert not any(name.split(".")[0] == "lightning" for name in imported(path))


@pytest.mark.parametrize("library", ONE_IMPORTER)
def test_each_heavyweight_has_one_importer(library: str) -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert importers == ONE_IMPORTER[library]


def test_the_listing_is_short_and_every_entry_stands_in_a_row() -> None:
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(entries) <= 23
    assert entries - {"__init__"} == set().union(*ROWS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_above_350_lines_and_no_function_above_50(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [f.name for f in functions if f.end_lineno and f.end_lineno - f.lineno >= 50] == []


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by it, and refuses the second."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
