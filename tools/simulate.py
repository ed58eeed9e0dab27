"""Plans a run past this machine: seconds of an iteration on clusters that nobody has to rent first.

  python tools/simulate.py [--nodes [1,8,128]] [--models [7B]] [--lengths [1024,8192]] [--machine.mfu 0.4]
      [--work.prompts 2048] [--bench bench.json] [--plot FILE.png] [--out FILE.json]

An iteration is laid out colocated, on dedicated engines, and overlapped on dedicated engines, each in its
fastest feasible plan: split of the nodes, tensor-parallel engines, fsdp2 or hsdp. Tables show iteration time,
weight sync, the fastest layout by size, and the first bottleneck; `--plot` draws them. Constants and their
sources stand in tools/simulation/inputs.py, the formulas in tools/simulation/cost.py; each constant is an
option. An H200 is `--machine.memory_bytes 141e9 --machine.memory_bandwidth 4.8e12`. `--bench` reads the
measurements of grpo_pl bench on this machine, calibrates the formulas with its raw limits, and compares
predicted with measured.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout need not be installed

from rich.console import Console
from rich.table import Table
from simulation.cost import COLOCATED, LAYOUTS, Cost, Plan, Simulation
from simulation.findings import (
    ALLOWED,
    Break,
    Costs,
    fastest,
    find_break,
    sweep,
    sync_seconds,
    validation,
)
from simulation.inputs import MODELS, Machine, Work

from grpo_pl.config.parser import Parser
from grpo_pl.system.refusal import fail, nearest

MAY_BE_ZERO = "spread", "correlation", "recompute"
AT_MOST_ONE = "mfu", "engine_mfu", "memory_share", "memory_use", "link_use", "mean_share", "correlation"


def read_options(args: list[str] | None) -> Any:
    """The options; impossible values are refused in one sentence."""
    parser = Parser(description=__doc__, prog="tools/simulate.py")
    parser.add_class_arguments(Machine, "machine")
    parser.add_class_arguments(Work, "work")
    parser.add_argument("--nodes", type=list[int], default=[2**i for i in range(8)], help="of 8 GPUs")
    parser.add_argument("--models", type=list[str], default=list(MODELS))
    parser.add_argument(
        "--lengths", type=list[int], default=[256, 1024, 4096, 8192, 16384, 32768], help="max_tokens"
    )
    for name, content in (("bench", "what grpo_pl bench wrote"), ("out", "JSON"), ("plot", "PNG")):
        parser.add_argument(f"--{name}", type=Path, help=f"a file: {content}")
    options = parser.parse_args(args)
    for group in ("machine", "work"):
        check_constants(group, vars(options[group]))
    for name in ("nodes", "lengths"):
        if not options[name] or min(options[name]) < 1:
            fail(f"{name}={options[name]}: expected numbers of 1 or more")
    for name in options.models or ["none"]:
        if name not in MODELS:
            fail(f"models: expected some of {', '.join(MODELS)}, got {name}{nearest(name, MODELS)}")
    for name in ("out", "plot"):
        if options[name] and not options[name].parent.is_dir():
            fail(f"{name}: there is no folder {options[name].parent}")
    return options


def check_constants(group: str, constants: dict[str, float]) -> None:
    """Refuse impossible constants of a machine or its work."""
    for name, value in constants.items():
        if not value >= 0 or (value == 0 and name not in MAY_BE_ZERO):
            fail(f"{group}.{name}={value}: expected more than 0")
        if value > 1 and name in AT_MOST_ONE:
            fail(f"{group}.{name}={value}: expected a share, at most 1")


def read_bench(path: Path) -> dict[str, Any]:
    """The measurements of grpo_pl bench, which must be those of its own model."""
    try:
        bench: dict[str, Any] = json.loads(path.read_text())
        limits, options = bench["limit"], bench["work"]["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"bench: {path} is not what grpo_pl bench --out writes ({type(error).__name__}: {error})")
    if options or not limits:
        fail(f"bench: {path} was measured with {' '.join(options)}: measure without options of your own")
    return bench


# ----------------------------------------------------------------------------------------------------- tables


def costs_table(simulation: Simulation, name: str, costs: Costs) -> Table:
    """A model on each number of GPUs: seconds and plans of the layouts, and of weight sync."""
    title = f"{name}: seconds of an iteration of {simulation.work.max_tokens:,} max_tokens"
    table = Table("GPUs", *LAYOUTS, "sync: colocated", "NCCL", "files", title=title, title_justify="left")
    for n in costs[COLOCATED]:
        syncs = sync_seconds(simulation, costs, n).values()
        cells = (cell(costs[layout][n]) for layout in LAYOUTS)
        table.add_row(str(n), *cells, *("-" if s is None else f"{s:.2g}" for s in syncs))
    return table


def cell(cost: Cost | str) -> str:
    """Seconds and plan, or the reason why there is none."""
    return f"{cost.iteration_s:.0f} {plan_text(cost.plan)}" if isinstance(cost, Cost) else cost


def plan_text(plan: Plan) -> str:
    """The choices of a plan in a few characters."""
    split = "" if plan.layout == COLOCATED else f" {plan.trainers}+{plan.engines}"
    return f"{plan.strategy} tp{plan.tensor_parallel}{split}"


def winners_table(costs: dict[str, dict[int, Costs]]) -> Table:
    """The fastest layout by response length: each with the GPUs on which it is the fastest."""
    lengths = map(str, next(iter(costs.values())))
    title = "Fastest layout by max_tokens: Colocated, Dedicated, Overlapped on so many GPUs"
    table = Table("model", "allowed", *lengths, title=title, title_justify="left")
    for name, of_length in costs.items():
        for choice, allowed in ALLOWED.items():
            cells = (ranges(fastest(found, allowed)) for found in of_length.values())
            table.add_row(name, choice, *cells)
        table.add_section()
    return table


def ranges(layouts: dict[int, str | None]) -> str:
    """Neighbouring GPU counts with the same winner, such as `C 8-64`; a dash where no layout fits."""
    runs = [(layout, list(group)) for layout, group in groupby(layouts, key=layouts.__getitem__)]
    spans = (f"{run[0]}-{run[-1]}" if run[1:] else f"{run[0]}" for _, run in runs)
    return "\n".join(
        f"{(layout or '-')[0].upper()} {span}" for (layout, _), span in zip(runs, spans, strict=True)
    )


def breaks_table(found: dict[str, list[Break]]) -> Table:
    """The limit of scaling of each layout, and its GPU time there by cause."""
    headings = "< half of linear", "because of", "refused", "most GPUs", "GPU time there"
    table = Table("model", "layout", *headings, title="What breaks first", title_justify="left")
    for name, rows in found.items():
        for row in rows:
            shares = sorted(row.shares.items(), key=lambda item: -item[1])[:2]
            table.add_row(
                name,
                row.layout,
                str(row.broken_gpus or "-"),
                row.cause or "",
                f"{row.refused_gpus}: {row.refusal}" if row.refused_gpus else "-",
                f"{row.most_gpus}: {row.efficiency:.0%}",
                "\n".join(f"{share:.0%} {cause}" for cause, share in shares),
            )
        table.add_section()
    return table


def validation_table(rows: list[tuple[str, float, float]]) -> Table:
    """Predicted beside measured."""
    headings = "grpo_pl bench", "predicted s", "measured s", "ratio"
    table = Table(*headings, title="This machine", title_justify="left")
    for name, predicted, measured in rows:
        table.add_row(name, f"{predicted:.2f}", f"{measured:.2f}", f"{predicted / measured:.2f}")
    return table


# ------------------------------------------------------------------------------------------------------- main


def as_json(costs: dict[str, dict[int, Costs]], simulations: dict[str, Simulation]) -> Iterator[Any]:
    """Every cost, or the reason why there is none."""
    for name, of_length in costs.items():
        for max_tokens, found in of_length.items():
            for layout in LAYOUTS:
                for n, cost in found[layout].items():
                    known = asdict(cost) if isinstance(cost, Cost) else {"refused": cost}
                    where = {"model": name, "max_tokens": max_tokens, "layout": layout, "gpus": n}
                    yield where | known | {"sync_s": sync_seconds(simulations[name], found, n)}


def main(args: list[str] | None = None) -> None:
    """Simulate, print the tables, and write the files."""
    options = read_options(args)
    checked = validation(read_bench(options.bench)) if options.bench else []
    machine, work = Machine(**vars(options.machine)), Work(**vars(options.work))
    gpus = [machine.gpus_per_node * n for n in sorted(set(options.nodes))]
    lengths = sorted({*options.lengths, work.max_tokens})
    simulations = {name: Simulation(machine, work, MODELS[name]) for name in options.models}
    costs = {name: {n: sweep(s, n, gpus) for n in lengths} for name, s in simulations.items()}
    breaks: dict[str, list[Break]] = {}
    for name, simulation in simulations.items():
        found = (find_break(simulation, *item) for item in costs[name][work.max_tokens].items())
        breaks[name] = [row for row in found if row]
    console = Console()
    for name, simulation in simulations.items():
        console.print(costs_table(simulation, name, costs[name][work.max_tokens]))
    console.print(winners_table(costs))
    console.print(breaks_table(breaks))
    if checked:
        console.print(validation_table(checked))
    if options.plot:
        from simulation.figure import draw

        draw(simulations, costs, work.max_tokens, options.plot)
    if options.out:
        plain = {
            "machine": asdict(machine),
            "work": asdict(work),
            "costs": list(as_json(costs, simulations)),
            "breaks": {name: [asdict(row) for row in rows] for name, rows in breaks.items()},
            "validation": [
                dict(zip(("what", "predicted_s", "measured_s"), row, strict=True)) for row in checked
            ],
        }
        options.out.write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
