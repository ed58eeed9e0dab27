"""The terms of tools/simulate.py by hand, their limits, and what follows from them."""

import sys
from dataclasses import replace
from math import inf, log2, sqrt

import pytest
import torch
from helpers.repository import ROOT, load_tool

sys.path.insert(0, str(ROOT / "tools"))

from simulation.cost import COLOCATED, DEDICATED, LAYOUTS, OVERLAPPED, Cost, Plan, Simulation
from simulation.findings import (
    ALLOWED,
    fastest,
    find_break,
    gpu_seconds,
    sweep,
)
from simulation.inputs import MODELS, Lengths, Machine, Work

simulate = load_tool("simulate")

H100 = Machine()
EVEN = Work(prompts=4, group_size=2, minibatches=2, prompt_tokens=100, max_tokens=400, spread=0.0)
"""8 responses of 100 tokens to prompts of 100."""
IDEAL = Machine(
    **dict.fromkeys(("base_latency_s", "nvlink_hop_s", "network_hop_s", "reduce_s", "step_s"), 0.0),
    **dict.fromkeys(("tensor_s", "wake_s"), 0.0),
    **dict.fromkeys(("memory_bytes", "memory_bandwidth", "nvlink", "network", "mtbf_hours"), inf),
)
"""Everything fits, and nothing but computing takes time."""
ONE_GPU = Plan(COLOCATED, trainers=1, engines=1, tensor_parallel=1, shards=1, prompts=4)


def of_7b(machine: Machine = H100, work: Work = EVEN) -> Simulation:
    return Simulation(machine, work, MODELS["7B"])


# ------------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("0.135B", 134_515_008),
        ("1.5B", 1_543_714_304),
        ("7B", 7_615_616_512),
        ("32B", 32_763_876_352),
        ("70B", 70_553_706_496),
    ],
)
def test_a_shape_has_the_parameters_that_its_model_card_says_but_for_biases(
    name: str, published: int
) -> None:
    assert MODELS[name].parameters == pytest.approx(published, rel=1e-4)


def test_an_all_gather_is_nccls_ring() -> None:
    machine = Machine(link_use=1.0)
    hops = 14 * 3.4e-6 + 1 * 14e-6  # 16 GPUs in 2 nodes: 15 hops, one of them between nodes
    assert machine.gather(16, 3, 16e9) == pytest.approx(3 * (8.4e-6 + hops) + 15e9 / 400e9)
    assert machine.gather(8, 1, 8e9) == pytest.approx(8.4e-6 + 7 * 3.4e-6 + 7e9 / 450e9)
    assert machine.gather(1, 3, 16e9) == 0


def test_a_broadcast_leaves_through_one_port_and_files_through_the_storage() -> None:
    machine = Machine(link_use=1.0, storage_node=10e9, storage=40e9)
    assert machine.broadcast(7, 2, 50e9) == pytest.approx(1 + 2 * (8.4e-6 + 3 * 14e-6))
    assert machine.files(2, 10e9) == 1 + 1
    assert machine.files(8, 10e9) == 1 + 2, "8 nodes share 40 GB/s"
    assert machine.save(2, 40e9) == 2
    assert machine.save(100, 40e9) == 1


def test_replicas_sum_their_shards_up_and_down_a_tree() -> None:
    machine = Machine(link_use=1.0)
    assert machine.replicas_sum(4, 5, 50e9) == pytest.approx(2 + 5 * (8.4e-6 + 2 * log2(4) * 14e-6))
    assert machine.replicas_sum(1, 5, 50e9) == 0


def test_lost_time_is_youngs() -> None:
    machine = Machine(mtbf_hours=1000, restart_s=600)
    between = 3600.0  # of 1,000 GPUs
    interval = sqrt(2 * 50 * between)  # 600 s
    assert machine.lost_share(1000, 10, 50) == pytest.approx(50 / 600 + (300 + 600) / 3600)
    assert machine.lost_share(1000, 1200, 50) == pytest.approx(50 / 1200 + (600 + 600) / 3600)
    assert interval == 600
    assert Machine(mtbf_hours=inf).lost_share(1000, 10, 50) == 0


def test_lengths_have_the_mean_that_was_asked_for_and_the_longest_of_n() -> None:
    lengths = Lengths.of(100.0, 400.0, 0.8)
    assert lengths.mean == pytest.approx(100, rel=1e-3)
    torch.manual_seed(0)
    samples = torch.randn(200_000, 16).double().mul(0.8).exp()
    low, high = 0.0, 400.0
    for _ in range(40):  # the same cut mean, from samples
        median = (low + high) / 2
        low, high = (median, high) if (samples * median).clamp(max=400).mean() < 100 else (low, median)
    drawn = (samples * median).clamp(max=400)
    assert lengths.deviation == pytest.approx(float(drawn.std()), rel=0.01)
    longest = float(lengths.any_alive(16).sum()) * lengths.cell
    assert longest == pytest.approx(float(drawn.amax(-1).mean()), rel=0.01)
    assert float(lengths.any_alive(1).sum()) * lengths.cell == pytest.approx(lengths.mean)
    assert float(lengths.any_alive(1e7).sum()) * lengths.cell == pytest.approx(400)


@pytest.mark.parametrize(("mean", "spread"), [(100.0, 0.0), (400.0, 0.8), (500.0, 0.8)])
def test_equal_lengths_have_no_tail(mean: float, spread: float) -> None:
    lengths = Lengths.of(mean, 400.0, spread)
    assert lengths.mean == pytest.approx(min(mean, 400))
    assert lengths.deviation == pytest.approx(0, abs=1e-3)
    assert float(lengths.any_alive(1000).sum()) * lengths.cell == pytest.approx(lengths.mean)


def test_ranks_are_as_uneven_as_the_most_of_normal_sums() -> None:
    work = Work(group_size=4, correlation=0.5, max_tokens=400, spread=0.8)
    variation = work.lengths.deviation / work.lengths.mean
    assert work.skew(100, 1) == pytest.approx(1)
    most_of_2 = 0.5895  # standard normal at (2 - 0.375) / (2 + 0.25) = 0.7222
    assert work.skew(100, 2) == pytest.approx(1 + most_of_2 * variation * sqrt(2.5 / 100), rel=1e-3)
    assert work.skew(1, 10**6) == pytest.approx(400 / work.lengths.mean), "none is longer than the longest"
    assert replace(work, spread=0.0).skew(1, 512) == pytest.approx(1, abs=1e-6)


# -------------------------------------------------------------------------------------------------- terms


def test_decoding_reads_all_weights_and_caches_in_each_step() -> None:
    machine = replace(IDEAL, memory_bandwidth=1e12, memory_use=1.0, step_s=1e-3, flops=inf)
    seven, work = MODELS["7B"], replace(EVEN, prompts=1, group_size=2)
    cache = 2 * 28 * 4 * 128 * 2  # keys and values, layers, heads, width, bfloat16
    by_hand = sum(1e-3 + (2 * seven.parameters + 2 * (100 + t + 0.5) * cache) / 1e12 for t in range(100))
    assert Simulation(machine, work, seven).generate_s(ONE_GPU) == pytest.approx(by_hand)


def test_what_an_engine_cannot_hold_waits_for_the_next_round() -> None:
    machine = replace(IDEAL, step_s=1.0)
    at_once = Simulation(machine, replace(EVEN, max_sequences=8), MODELS["7B"])
    waiting = Simulation(machine, replace(EVEN, max_sequences=2), MODELS["7B"])
    assert at_once.generate_s(ONE_GPU) == pytest.approx(100, rel=1e-2)
    assert waiting.generate_s(ONE_GPU) == pytest.approx(400, rel=1e-2)


@pytest.mark.parametrize("prompts", [1, 8, 64])
def test_generating_ends_with_the_longest_response_of_all_engines(prompts: int) -> None:
    machine, work = replace(IDEAL, step_s=1.0, flops=inf), replace(EVEN, spread=0.8, prompts=prompts)
    longest = float(work.lengths.any_alive(2 * prompts).sum()) * work.lengths.cell
    for engines in (1, 2):
        plan = replace(ONE_GPU, layout=DEDICATED, engines=engines)
        assert of_7b(machine, work).generate_s(plan) == pytest.approx(longest)
    assert longest > 1.1 * work.lengths.mean


@pytest.mark.parametrize(("recompute", "flops"), [(False, 3), (True, 4)])
def test_an_update_with_infinite_links_is_its_products(recompute: bool, flops: int) -> None:
    simulation = of_7b(IDEAL, replace(EVEN, recompute=recompute))
    rows = 8 * 100 + 4 * 100  # each group's prompt once
    attention = 4 * 28 * 28 * 128 * (100 + 50)  # a token sees its prompt and half of its response
    by_hand = flops * rows * (2 * MODELS["7B"].computed + attention) / (989e12 * 0.36)
    for plan in (ONE_GPU, replace(ONE_GPU, trainers=4, shards=4)):
        assert simulation.update_s(plan) == pytest.approx(by_hand / plan.trainers)


def test_an_update_that_need_not_compute_moves_its_shards() -> None:
    machine, seven = replace(IDEAL, flops=inf, nvlink=100e9, network=50e9, link_use=1.0), MODELS["7B"]
    full = Plan(COLOCATED, trainers=4, engines=4, tensor_parallel=1, shards=4, prompts=4)
    once = (2 * 2 + 4) * seven.parameters * 3 / 4 / 100e9  # gathered twice, gradients scattered
    assert of_7b(machine).update_s(full) == pytest.approx(2 * once)
    assert of_7b(machine, replace(EVEN, update_epochs=3)).update_s(full) == pytest.approx(6 * once)
    hybrid = replace(full, trainers=16, engines=16, shards=8, prompts=16)
    inside = (2 * 2 + 4) * seven.parameters * 7 / 8 / 100e9
    between = 2 * 4 * seven.parameters / 8 / 50e9
    assert of_7b(machine, replace(EVEN, prompts=16)).update_s(hybrid) == pytest.approx(2 * (inside + between))


def test_only_what_the_first_step_does_not_know_is_scored() -> None:
    simulation = of_7b(IDEAL)
    once = simulation.update_s(ONE_GPU) / 4  # a forward of four
    assert simulation.score_s(ONE_GPU) == pytest.approx(once / 2)
    assert of_7b(IDEAL, replace(EVEN, minibatches=1)).score_s(ONE_GPU) == 0
    assert of_7b(IDEAL, replace(EVEN, update_epochs=2)).score_s(ONE_GPU) == pytest.approx(once)


def test_weights_go_one_parameter_at_a_time() -> None:
    machine, seven = replace(IDEAL, tensor_s=1e-3, wake_s=2.0, network=50e9, link_use=1.0), MODELS["7B"]
    simulation = of_7b(replace(machine, memory_bandwidth=1e12, memory_use=1.0))
    copied = 2 * 2 * seven.parameters / 1e12
    assert simulation.sync_s(ONE_GPU) == pytest.approx(seven.tensors * 1e-3 + 2 + copied)
    dedicated = replace(ONE_GPU, layout=DEDICATED)
    sent = 2 * seven.parameters / 50e9
    assert simulation.sync_s(dedicated) == pytest.approx(seven.tensors * 1e-3 + sent)
    written_and_read = 2 * 2 * seven.parameters / 10e9
    through_files = simulation.sync_s(dedicated, through_files=True)
    assert through_files == pytest.approx(seven.tensors * 1e-3 + written_and_read)


def test_overlapped_takes_the_longer_half_and_the_others_take_both() -> None:
    simulation = of_7b(replace(Machine(), mtbf_hours=inf), Work())
    for layout in LAYOUTS:
        cost = simulation.best(layout, 32)
        assert isinstance(cost, Cost)
        sync, generate, score, update = cost.stages.values()
        both = max(generate, score + update) if layout == OVERLAPPED else generate + score + update
        assert cost.iteration_s == pytest.approx(sync + both)


def test_memory_is_shards_weights_and_cache() -> None:
    simulation = of_7b(Machine(memory_bytes=100e9, memory_share=1.0))
    plan = Plan(COLOCATED, trainers=4, engines=4, tensor_parallel=2, shards=4, prompts=4)
    size = MODELS["7B"].parameters
    assert simulation.shard_bytes(plan) == 16 * size / 4
    assert simulation.cache_bytes(plan) == pytest.approx(2 * (100e9 - 4 * size) - 2 * size)
    assert simulation.cache_bytes(replace(plan, layout=DEDICATED)) == pytest.approx(200e9 - 2 * size)
    assert simulation.trainer_bytes(plan) > simulation.shard_bytes(plan) + 2 * 6 * MODELS["7B"].layer
    fewer_heads_than_gpus = replace(plan, tensor_parallel=8)
    assert simulation.token_bytes(fewer_heads_than_gpus) == 2 * simulation.token_bytes(plan)


# --------------------------------------------------------------------------------------------------- plans


def test_what_does_not_go_is_said() -> None:
    assert of_7b(work=Work()).best(COLOCATED, 1024) == "512 prompts for 1024 ranks"
    assert Simulation(Machine(), Work(), MODELS["70B"]).best(COLOCATED, 8) == "memory: update"
    tight = Simulation(Machine(), Work(max_tokens=32768, micro_batch_tokens=1024), MODELS["70B"])
    assert tight.refusal(Plan(DEDICATED, 512, 1, 1, 512, 512)) == "memory: update"
    assert of_7b(Machine(memory_bytes=20e9)).refusal(replace(ONE_GPU, trainers=4, shards=4)) is not None
    assert (
        of_7b(work=replace(EVEN, minibatches=3)).best(COLOCATED, 1)
        == "8 responses of a rank for 3 minibatches"
    )
    assert of_7b().best(DEDICATED, 1) == "too few GPUs"
    assert of_7b(Machine(mtbf_hours=1), Work()).best(DEDICATED, 64) == "failures: no progress"


def test_a_plan_uses_all_gpus_in_whole_nodes_and_divides_heads_and_prompts() -> None:
    plans = list(of_7b(work=Work()).plans(DEDICATED, 64))
    assert {plan.gpus for plan in plans} == {64}
    assert {plan.trainers for plan in plans} == set(range(8, 64, 8))
    assert {plan.tensor_parallel for plan in plans} == {1, 2, 4}, "8 does not divide 28 heads"
    assert {plan.shards for plan in plans if plan.trainers == 48} == {8, 48}
    assert {plan.prompts for plan in plans if plan.trainers == 48} == {528}
    within = list(of_7b(work=Work()).plans(OVERLAPPED, 8))
    assert {plan.trainers for plan in within} == set(range(1, 8))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_better_machine_is_never_slower(layout: str, name: str) -> None:
    work = Work()
    before = Simulation(Machine(), work, MODELS[name]).best(layout, 512)
    assert isinstance(before, Cost)
    for constant in (
        "flops",
        "memory_bandwidth",
        "nvlink",
        "network",
        "storage",
        "mtbf_hours",
        "memory_bytes",
    ):
        better = Machine(**{constant: 2 * getattr(Machine(), constant)})
        after = Simulation(better, work, MODELS[name]).best(layout, 512)
        assert isinstance(after, Cost)
        assert after.iteration_s <= before.iteration_s * (1 + 1e-9), constant


# ------------------------------------------------------------------------------------------------ findings


def test_without_latency_and_tails_scaling_is_linear_and_nothing_breaks() -> None:
    simulation = Simulation(IDEAL, Work(spread=0.0), MODELS["0.135B"])
    found = sweep(simulation, 8192, [8, 64, 512])[COLOCATED]
    scaling = find_break(simulation, COLOCATED, found)
    assert scaling is not None
    assert scaling.efficiency == pytest.approx(1, rel=1e-3)
    assert scaling.broken_gpus is scaling.refused_gpus is scaling.cause is None
    assert scaling.shares["computing"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("constants", "cause"),
    [
        ({"network_hop_s": 1.0}, "latency of collectives"),
        ({"network": 1e6}, "link bandwidth"),
        ({"tensor_s": 1.0}, "handing weights over"),
        ({"mtbf_hours": 200.0, "storage": 1e8}, "failures and checkpoints"),
    ],
)
def test_the_constant_that_is_bad_is_what_breaks(constants: dict[str, float], cause: str) -> None:
    simulation = Simulation(replace(IDEAL, **constants), Work(spread=0.0), MODELS["0.135B"])
    scaling = find_break(simulation, COLOCATED, sweep(simulation, 8192, [8, 64, 512, 1024])[COLOCATED])
    assert scaling is not None
    assert scaling.cause == cause
    assert (scaling.refused_gpus, scaling.refusal) == (1024, "512 prompts for 1024 ranks")


def test_gpus_without_work_are_counted() -> None:
    simulation = of_7b(IDEAL, Work(spread=0.0))
    cost = simulation.best(DEDICATED, 16)
    assert isinstance(cost, Cost)
    into = gpu_seconds(simulation, cost)
    learning = cost.stages["score"] + cost.stages["update"]
    assert into["waiting for the other GPUs"] == pytest.approx(8 * (cost.stages["generate"] + learning))
    assert sum(into.values()) == pytest.approx(16 * cost.iteration_s)


def test_the_fastest_that_is_allowed_wins() -> None:
    simulation = of_7b(work=Work())
    costs = sweep(simulation, 8192, [8, 1024])
    assert fastest(costs, ALLOWED["synchronous"]) == {8: COLOCATED, 1024: DEDICATED}
    assert fastest(costs, ALLOWED["off-policy"])[1024] == OVERLAPPED
    too_large = sweep(Simulation(Machine(), Work(), MODELS["70B"]), 8192, [8])
    assert fastest(too_large, LAYOUTS) == {8: None}
    assert simulate.ranges({8: None, 16: COLOCATED, 32: COLOCATED, 64: OVERLAPPED}) == "- 8\nC 16-32\nO 64"
