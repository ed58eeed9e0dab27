"""The gradient of one rollout, computed in several ways."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors import safe_open

from grpo_pl.commands.engine import ONE_PROCESS, of_policy, started
from grpo_pl.config.cli import CLI, configure
from grpo_pl.rollout.parquet import save_rollout
from grpo_pl.system.refusal import ConfigError

TOLERANCE = 1e-4
"""A relative error above it is no rounding in float32."""
ONE_STEP = (
    *("--data.minibatches=1", "--data.update_epochs=1", "--data.val=null", "--data.resample=null"),
    *("--trainer.max_epochs=1", "--trainer.max_steps=-1", "--trainer.num_nodes=1"),
    *("--trainer.precision=32-true", "--trainer.logger=false", "--trainer.callbacks=null"),
    *("--checkpoint.every_n_epochs=1000000", "--checkpoint.save_last=false", "--gradient_terms.every=null"),
)
"""Every variant's changes to the config: one step, in float32, and nothing else."""


@dataclass
class Variant:
    """One way to compute the same gradient."""

    strategy: str
    ranks: int
    micro_batches: int
    """In an optimizer step, on each rank."""


@dataclass
class Row(Variant):
    """A variant with its result."""

    gradient_norm: float | None = None
    relative_error: float | None = None
    """|g - g0| / |g0| over all trained parameters, with g0 the gradient of the first row."""
    seconds: float | None = None
    note: str = ""
    """Why there is no gradient; empty where there is one."""


def check(options: list[str], out: Path | None) -> int:
    """Compare the gradient of one rollout over strategies, ranks and micro-batches; 1 if they differ.

    Args:
        options: The options of `fit`.
        out: A JSON file for the table, too.

    Raises:
        ConfigError: If `fit` would refuse the config, or if the rollout has no gradient.
    """
    cli = configure([*options, *ONE_PROCESS, "--data.resample", "null"])
    with tempfile.TemporaryDirectory() as folder:
        rollouts = Path(folder) / "rollouts.parquet"
        on_gpu = sample(cli, rollouts)
        rows = measure(variants(cli, on_gpu), options, rollouts, on_gpu)
    show(rows, Console())
    worst = max(row.relative_error or 0.0 for row in rows)
    if out is not None:
        content = {"max_relative_error": worst, "tolerance": TOLERANCE, "rows": [asdict(row) for row in rows]}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    failed = any(row.relative_error is None and row.note.startswith("failed") for row in rows)
    return int(worst > TOLERANCE or failed)


def sample(cli: CLI, path: Path) -> bool:
    """Store the pretrained model's rollout of iteration 0; returns whether this machine computes on a GPU."""
    trainer, _, data = of_policy(cli)
    with started(trainer, data):
        save_rollout(replace(data.sampler, resample=None).sample(0), path)
    return trainer.strategy.root_device.type == "cuda"


def variants(cli: CLI, on_gpu: bool) -> list[Variant]:
    """The variants that this machine can compute, the reference first."""
    data = cli.datamodule
    configured = cli.trainer.accumulate_grad_batches
    units = data.prompts_per_iteration * (1 if data.keep_groups else data.group_size)
    single = [Variant("single", 1, k * configured) for k in (1, 2, 4) if k * configured <= units]
    counts = [n for n in (2, 4, 8) if data.prompts_per_iteration % n == 0]
    ranks = [n for n in counts if n <= (torch.cuda.device_count() if on_gpu else 4)]
    sharded = []
    for n in ranks:
        cuts = sorted({k for k in (max(configured // n, 1), configured) if k <= units // n})
        sharded += [Variant(strategy, n, k) for strategy in ("ddp", "fsdp2") for k in cuts]
        sharded.append(Variant("fsdp", n, cuts[0]))
    return single + sharded


def measure(compared: list[Variant], options: list[str], rollouts: Path, on_gpu: bool) -> list[Row]:
    """The gradient of each variant against that of the first."""
    rows: list[Row] = []
    reference = rollouts.with_name("0.safetensors")
    with Progress() as progress:
        task = progress.add_task("check-invariance", total=len(compared))
        for i, variant in enumerate(compared):
            progress.update(task, description=f"{variant.strategy}, ranks {variant.ranks}")
            row = Row(**asdict(variant))
            file = rollouts.with_name(f"{i}.safetensors")
            if variant.strategy == "fsdp" and not on_gpu:
                row.note = "not run: FSDP1 needs GPUs"
            else:
                begin = time.perf_counter()
                row.note = step(variant, options, rollouts, file)
                row.seconds = time.perf_counter() - begin
            if not row.note:
                row.gradient_norm, row.relative_error = compare(file, reference)
            elif not rows:
                raise RuntimeError(f"the reference could not be computed:\n{row.note}")
            rows.append(row)
            progress.advance(task)
    return rows


def step(variant: Variant, options: list[str], rollouts: Path, file: Path) -> str:
    """Take the step in its own processes; returns the reason if there is no gradient, else an empty text."""
    command = [
        *(sys.executable, "-m", "grpo_pl.commands.check_invariance.probe", str(file), *options, *ONE_STEP),
        *("--data.engine", "ReplayEngine", "--data.engine.path", str(rollouts)),
        *("--trainer.default_root_dir", str(rollouts.parent / "run")),
        *("--trainer.strategy", "auto" if variant.strategy == "single" else variant.strategy),
        *("--trainer.devices", str(variant.ranks)),
        *("--trainer.accumulate_grad_batches", str(variant.micro_batches)),
    ]
    threads = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // variant.ranks, 1))}
    done = subprocess.run(
        command, env=threads | dict(os.environ), capture_output=True, text=True, check=False
    )
    if done.returncode == 0 and file.is_file():
        return ""
    last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-1:]
    return f"failed: {' '.join(last)}"


def compare(file: Path, reference: Path) -> tuple[float, float]:
    """Norm of a gradient, and its distance from the reference in units of the reference's norm."""
    square = distance = base = 0.0
    with safe_open(file, framework="pt") as ours, safe_open(reference, framework="pt") as theirs:
        if set(ours.keys()) != set(theirs.keys()):
            raise RuntimeError(f"other parameters have a gradient: {set(ours.keys()) ^ set(theirs.keys())}")
        for name in ours.keys():  # noqa: SIM118 - it is no dict
            gradient, expected = ours.get_tensor(name).double(), theirs.get_tensor(name).double()
            square += float(gradient.square().sum())
            base += float(expected.square().sum())
            distance += float((gradient - expected).square().sum())
    if base == 0:
        raise ConfigError(
            "data.seed: the rollout has no gradient, since no group has responses of different reward: "
            "choose another seed, or more prompts"
        )
    return square**0.5, (distance / base) ** 0.5


def show(rows: list[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="The same gradient, computed in several ways (float32)")
    for name in ("strategy", "ranks", "micro-batches", "|g|", "relative error", "seconds"):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for row in rows:
        cells = [row.strategy, str(row.ranks), str(row.micro_batches)]
        if row.note:
            table.add_row(*cells, "", row.note, "")
            continue
        assert row.relative_error is not None
        bad = row.relative_error > TOLERANCE
        error = f"[red]{row.relative_error:.1e}[/red]" if bad else f"{row.relative_error:.1e}"
        table.add_row(*cells, f"{row.gradient_norm:.4g}", error, f"{row.seconds:.0f}")
    console.print(table)
