"""Conclusions from the costs: the fastest layouts, the limits of scaling, and agreement with measurements."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from grpo_pl.commands.bench.command import SCALING_PROMPTS
from simulation.cost import COLOCATED, DEDICATED, LAYOUTS, OVERLAPPED, Cost, Plan, Simulation
from simulation.inputs import MODELS, Machine, Work

LEARNING, ALL = ("score", "update"), ("sync", "generate", "score", "update")
CAUSES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "computing": ({"flops": inf}, {}, ALL),
    "memory bandwidth": ({"memory_bandwidth": inf}, {}, ALL),
    "longest response": ({}, {"spread": 0.0}, ("generate",)),
    "uneven ranks in an update": ({}, {"spread": 0.0}, LEARNING),
    "latency of collectives": ({"base_latency_s": 0.0, "nvlink_hop_s": 0.0, "network_hop_s": 0.0}, {}, ALL),
    "link bandwidth": ({"nvlink": inf, "network": inf}, {}, ALL),
    "overhead of engine steps": ({"step_s": 0.0, "reduce_s": 0.0}, {}, ALL),
    "handing weights over": ({"tensor_s": 0.0, "wake_s": 0.0}, {}, ALL),
}
"""Cause of GPU time -> constants of machine and work without it, and the stages that count."""
IDLE, LOST = "waiting for the other GPUs", "failures and checkpoints"
ALLOWED = {"synchronous": (COLOCATED, DEDICATED), "off-policy": LAYOUTS}
"""The layouts to choose from."""
BROKEN = 0.5
"""The share of linear scaling below which more GPUs do not pay."""
PROMPT_TOKENS, LONG_PROMPT_TOKENS = 47, 56
"""Tokens of the prompts of grpo_pl bench, and of those that ask for long answers."""
MICRO_BATCH_TOKENS = 1024
"""More than a group of grpo_pl bench has: its prompt is read once."""
Costs = dict[str, dict[int, Cost | str]]
"""Layout -> number of GPUs -> cost, or why there is none."""


def sweep(simulation: Simulation, max_tokens: int, gpus: Sequence[int]) -> Costs:
    """All layouts on all numbers of GPUs, with responses of a length."""
    work = replace(simulation.work, max_tokens=max_tokens)
    changed = replace(simulation, work=work)
    return {layout: {n: changed.best(layout, n) for n in gpus} for layout in LAYOUTS}


def seconds(cost: Cost | str) -> float:
    """Seconds of an iteration; infinite for an infeasible plan."""
    return cost.iteration_s if isinstance(cost, Cost) else inf


def fastest(costs: Costs, allowed: Sequence[str]) -> dict[int, str | None]:
    """The fastest layout for each number of GPUs; None where none is feasible."""
    best = {n: min(allowed, key=lambda layout: seconds(costs[layout][n])) for n in costs[COLOCATED]}
    return {n: layout if seconds(costs[layout][n]) < inf else None for n, layout in best.items()}


def sync_seconds(simulation: Simulation, costs: Costs, gpus: int) -> dict[str, float | None]:
    """Seconds of weight sync in its three ways, in the fastest plans; None where no plan is feasible."""
    colocated, dedicated = costs[COLOCATED][gpus], costs[OVERLAPPED][gpus]
    ways: dict[str, float | None] = {"colocated": None, "NCCL": None, "files": None}
    if isinstance(colocated, Cost):
        ways["colocated"] = colocated.stages["sync"]
    if isinstance(dedicated, Cost):
        ways["NCCL"] = dedicated.stages["sync"]
        ways["files"] = simulation.sync_s(dedicated.plan, through_files=True)
    return ways


def gpu_seconds(simulation: Simulation, cost: Cost) -> dict[str, float]:
    """GPU-seconds of an iteration by cause: what the same plan would save without it. Causes may overlap."""
    by_cause = {}
    for cause, (machine, work, stages) in CAUSES.items():
        changed = replace(
            simulation,
            machine=replace(simulation.machine, **machine),
            work=replace(simulation.work, **work),
        ).planned(cost.plan)
        without = replace(cost, stages=cost.stages | {stage: changed.stages[stage] for stage in stages})
        by_cause[cause] = cost.busy_gpu_s - without.busy_gpu_s
    by_cause[IDLE] = cost.undisturbed_s * cost.plan.gpus - cost.busy_gpu_s
    by_cause[LOST] = (cost.iteration_s - cost.undisturbed_s) * cost.plan.gpus
    return by_cause


@dataclass(frozen=True, kw_only=True)
class Break:
    """The limit of a layout's scaling."""

    layout: str
    first_gpus: int
    """The smallest feasible number."""
    broken_gpus: int | None
    """The smallest number below half of linear scaling; None if there is none."""
    cause: str | None
    """The cause whose GPU-seconds have grown most from the first number to this one."""
    refused_gpus: int | None
    """The smallest infeasible number after the first."""
    refusal: str | None
    most_gpus: int
    """The largest feasible number."""
    efficiency: float
    """Its share of linear scaling."""
    shares: dict[str, float]
    """Cause -> its share of the GPU time there."""


def find_break(simulation: Simulation, layout: str, found: dict[int, Cost | str]) -> Break | None:
    """The limit of a layout's scaling over rising numbers of GPUs; None if no number is feasible."""
    costs = {n: cost for n, cost in found.items() if isinstance(cost, Cost)}
    if not costs:
        return None
    first, most = min(costs), max(costs)
    efficiency = {n: costs[first].iteration_s * first / (c.iteration_s * n) for n, c in costs.items()}
    broken = next((n for n in costs if efficiency[n] < BROKEN), None)
    refused = next((n for n in found if n > first and n not in costs), None)
    into = {n: gpu_seconds(simulation, costs[n]) for n in {first, most, broken} if n}
    return Break(
        layout=layout,
        first_gpus=first,
        broken_gpus=broken,
        cause=max(into[broken], key=lambda it: into[broken][it] - into[first][it]) if broken else None,
        refused_gpus=refused,
        refusal=str(found[refused]) if refused else None,
        most_gpus=most,
        efficiency=efficiency[most],
        shares={cause: s / (costs[most].iteration_s * most) for cause, s in into[most].items()},
    )


# ------------------------------------------------------------------------------------------------- validation


def bench_work(prompts: int, *, group_size: int, max_tokens: int, prompt_tokens: int, tokens: float) -> Work:
    """An iteration of grpo_pl bench that has generated so many tokens."""
    return Work(
        prompts=prompts,
        group_size=group_size,
        minibatches=1,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        mean_share=min(tokens / (prompts * group_size * max_tokens), 1.0),
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        recompute=False,
    )


def calibrated(bench: dict[str, Any]) -> Simulation:
    """The machine of grpo_pl bench with its work, calibrated by the raw limits that were measured on it.

    FLOPs follow from the forward and backward alone, the overhead of an engine step from the engine alone,
    the transfer of a parameter from the sync. One rank; the memory's speed stays hidden in the engine's two
    constants.
    """
    said, model = bench["work"], MODELS["0.135B"]
    machine = Machine(
        gpus_per_node=1,
        flops=1.0,
        mfu=1.0,
        engine_mfu=1.0,
        memory_bytes=inf,
        memory_bandwidth=inf,
        tensor_s=bench["stages"]["sync"] / model.tensors,
        wake_s=0.0,
        step_s=0.0,
        mtbf_hours=inf,
    )
    work = bench_work(
        int(said["data.prompts_per_iteration"]),
        group_size=int(said["data.group_size"]),
        max_tokens=int(said["data.sampling.max_tokens"]),
        prompt_tokens=PROMPT_TOKENS,
        tokens=bench["tokens"]["response"],
    )
    unknown = Simulation(machine, work, model)
    read_s = min(bench["limit"]["packed"], bench["limit"]["padded"])
    known = replace(unknown, machine=replace(machine, flops=unknown.update_s(ONE_RANK) / read_s))
    stepping = replace(known, machine=replace(known.machine, step_s=1.0))
    computing_s = known.generate_s(ONE_RANK)
    steps = stepping.generate_s(ONE_RANK) - computing_s
    step_s = max(bench["limit"]["engine"] - computing_s, 0.0) / steps
    return replace(known, machine=replace(known.machine, step_s=step_s))


ONE_RANK = Plan(COLOCATED, trainers=1, engines=1, tensor_parallel=1, shards=1, prompts=0)


def validation(bench: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Name, predicted and measured seconds of grpo_pl bench; calibration has not seen its `scaling`."""
    simulation = calibrated(bench)
    cost = simulation.cost(ONE_RANK)
    rows = [(name, cost.stages[name], bench["stages"][name]) for name in ("sync", "generate", "update")]
    rows.append(("iteration", sum(cost.stages.values()), bench["stages"]["iteration"]))
    for axis, grown in (bench["scaling"] or {}).items():
        for row in grown:
            sizes = {
                "group_size": int(bench["work"]["data.group_size"]),
                "max_tokens": int(bench["work"]["data.sampling.max_tokens"]),
            } | {axis: int(row[axis])}
            work = bench_work(
                SCALING_PROMPTS, **sizes, prompt_tokens=LONG_PROMPT_TOKENS, tokens=row["response_tokens"]
            )
            stages = replace(simulation, work=work).cost(ONE_RANK).stages
            rows.append((f"{axis} {row[axis]:.0f}", sum(stages.values()), row["iteration_s"]))
    return rows
