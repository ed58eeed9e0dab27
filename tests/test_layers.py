"""The import graph is a test: a module imports only from the rows above its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "grpo_pl"
LAYERS = [
    {
        *("types", "quiet", "refusal", "heartbeat", "memory", "durable", "addresses", "precision"),
        "lazy_torchmetrics",
    },
    {"slurm", "manifest", "lock", "run_files", "commands", "config_files"},
    {"functional", "checkpoint_files", "option_names"},
    {
        "prompts",
        "rollout.engine",
        "rollout.files",
        "advantages",
        "losses",
        "regularizers",
        "corrections",
        "masks",
        "references",
        "resampling",
        "models",
        "weight_sync",
    },
    {"rewards"},
    {"forked"},
    {"fork_server"},
    {
        "rollout.dataset",
        "rollout.in_process",
        "rollout.overlapped",
        "rollout.replay",
        "rollout.shared",
        "rollout.vllm",
        "alarms",
        "loop",
        "evaluation",
        "metrics",
        "gradients",
        "nonfinite",
        "objective",
        "checks",
        "restoring",
        "feedback",
    },
    {"optimization", "strategies", "rollout.server", "rollout.stored"},
    {"module", "datamodule", "reward_modeling", "callbacks"},
    {
        *("parser", "config_values", "open_types", "planning", "submission"),
        *("rank_failures", "experiments"),
    },
    {"ablation", "jobs", "mistakes"},
    {"cli"},
    {"rollout.offline"},
    {"invariance", "diagnosis", "rollout.command"},
    {"__main__"},
]
ONE_IMPORTER = {
    "vllm": {
        "rollout/vllm.py",
        *(f"rollout/server/{name}.py" for name in ("__main__", "receiver", "transfer")),
    },
    "transformers": {"models/loading.py"},
    "peft": {"models/adapter.py"},
    "datasets": {"prompts/sources.py"},
    "reasoning_gym": {"prompts/procedural.py"},
    "math_verify": {"rewards/mathematics.py"},
    "matplotlib": {"callbacks/curves.py", "experiments/figures.py", "experiments/panels.py"},
    "pandas": {"experiments/tidy.py"},
    "scipy": {"experiments/statistics.py"},
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def node(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "rollout" and len(parts) > 1 else parts[0]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, type checking apart."""
    found: set[str] = set()

    def visit(tree: ast.AST) -> None:
        if isinstance(tree, ast.If) and getattr(tree.test, "id", "") == "TYPE_CHECKING":
            return
        if isinstance(tree, ast.Import):
            found.update(alias.name for alias in tree.names)
        if isinstance(tree, ast.ImportFrom):
            assert tree.level == 0, f"{path} has a relative import"
            found.update({tree.module or ""} | {f"{tree.module}.{alias.name}" for alias in tree.names})
        for child in ast.iter_child_nodes(tree):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def row(name: str) -> int:
    rows = [i for i, layer in enumerate(LAYERS) if name in layer]
    assert rows, f"{name} stands in no layer of this test"
    return rows[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_rows_above(path: Path) -> None:
    own = node(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    known = {name for layer in LAYERS for name in layer} | {"rollout"}
    for module in imports(path):
        if module.startswith("grpo_pl."):
            other = node(module.removeprefix("grpo_pl."))
            if other in {own, "rollout"} or other not in known:
                continue
            assert row(other) < row(own), f"{own} imports {other}, which does not stand above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_upper_rows_know_lightning(path: Path) -> None:
    own = node(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    uses = any(module.split(".")[0] == "lightning" for module in imports(path))
    assert not uses or row(own) >= row("optimization")


@pytest.mark.parametrize("library", ONE_IMPORTER)
def test_each_heavyweight_has_one_importer(library: str) -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(module.split(".")[0] == library for module in imports(path))
    }
    assert importers == ONE_IMPORTER[library]
