"""The plan as a table on the terminal and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from grpo_pl.commands.plan.advice import warnings
from grpo_pl.commands.plan.estimate import (
    overhead_bytes,
    passes,
    peak,
    phases,
    smallest_that_fits,
    update_bytes,
)
from grpo_pl.commands.plan.requirements import Requirements
from grpo_pl.system.memory import GIB


def as_json(run: Requirements) -> dict[str, Any]:
    """Everything in the plan, in bytes, for one rank."""
    fits, (phase, needed) = smallest_that_fits(run), peak(run)
    return {
        "models": [
            {key: value for key, value in vars(model).items() if key != "network"} for model in run.models
        ],
        "engine": asdict(run.engine),
        "overhead_bytes": overhead_bytes(run),
        "update": update_bytes(run),
        "phases": phases(run),
        "peak_phase": phase,
        "peak_bytes": needed,
        "free_bytes": run.free_bytes,
        "largest_micro_batch": None
        if fits is None
        else {"sequences": run.sequences(fits), "accumulate_grad_batches": fits},
        "forwards": [asdict(each) for each in passes(run)],
        "tokens_at_most": tokens_at_most(run),
        "warnings": warnings(run),
    }


def tokens_at_most(run: Requirements) -> dict[str, int]:
    """Tokens of one iteration: those generated, and those that each pass over the rollout reads."""
    generated = run.responses * run.response_tokens
    return {"generated": generated, "read": generated + run.responses * run.prompt_tokens}


def show(run: Requirements, console: Console) -> None:
    """Print the plan."""
    console.print(models_table(run))
    console.print(phases_table(run))
    tokens, fits = tokens_at_most(run), smallest_that_fits(run)
    console.print(
        f"An iteration generates at most {tokens['generated']:,} tokens, in {run.responses} responses; "
        f"a pass over it reads at most {tokens['read']:,}.",
        highlight=False,
    )
    if fits is not None:
        console.print(
            f"Largest micro-batch that fits the {gib(run.free_bytes)} GiB free: {run.sequences(fits)} "
            f"sequences (trainer.accumulate_grad_batches: {fits}; now {run.micro_batches}).",
            highlight=False,
        )
    for warning in warnings(run):
        console.print(f"! {warning}", highlight=False, markup=False)


def models_table(run: Requirements) -> Table:
    """The memory of each model, and its passes over a rollout."""
    table = Table("GiB of a rank", title_justify="left", title="Models, and what a micro-batch needs")
    for heading in ("params", "weights", "grads", "optim.", "forwards", "backw."):
        table.add_column(heading, justify="right")
    for model, made in zip(run.models, passes(run), strict=True):
        table.add_row(
            model.name,
            f"{model.parameters / 1e6:,.1f} M",
            *map(gib, (model.parameter_bytes, model.gradient_bytes, model.optimizer_bytes)),
            f"{made.score:.2g} + {made.update}",
            str(made.backward),
        )
    engine = {"engine": run.engine.weights, "engine's cache": run.engine.cache} if run.engine.weights else {}
    needs = {name: needed for name, needed in update_bytes(run).items() if needed}
    for name, needed in (engine | needs | {"libraries": overhead_bytes(run)}).items():
        table.add_row(name, "", gib(needed))
    return table


def phases_table(run: Requirements) -> Table:
    """The memory of each phase."""
    table = Table("phase", title_justify="left", title="Memory")
    table.add_column("GiB", justify="right")
    table.add_column("")
    highest, needed = peak(run)
    for phase, size in phases(run).items():
        bar = "#" * round(24 * size / needed)
        table.add_row(phase, gib(size), f"{bar} peak" if phase == highest else bar)
    return table


def gib(size: int) -> str:
    """Bytes as GiB; a dash for none."""
    return f"{size / GIB:.2f}" if size else "-"
