"""`grpo_pl bench`: what an iteration costs, beside what it must, another build, and TRL for the same work.

The work is the config `quickstart` with 8 prompts x 8 responses of at most 64 tokens, one optimizer step, a
group a micro-batch, a learning rate of 0 (so that every iteration finds the same policy), and a reward that
differs within every group (so that no sequence is left out). After each iteration the same process measures
two limits of that very iteration. The machine's: the products of the tokens that must be read (what responses
begin with once, the head where a token is scored), at the rate of bare products, and the engine's likewise,
or its reading of the weights where that takes longer. Our own: vLLM alone on the same requests, and a forward
and backward over the same tokens, padded with plain transformers and packed with ours; the faster of the two
counts. So whatever else the machine does slows all sides. The first iteration is left out, and medians are
taken over the others. How the cost grows with the group and with the length is measured on 2 prompts that ask
for long answers.

Trainer, engine and limits compute in the type that this machine multiplies fastest, unless options say
otherwise. `--against COMMIT` runs another build of grpo_pl on the same work; the two take turns, an iteration
each. `--peer` runs TRL's GRPOTrainer on the same prompts, with generation by transformers (its only way
on a CPU), in that type and in float32; the faster one counts. TRL is installed once, for this alone, into
~/.cache/grpo_pl/bench.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from grpo_pl.commands.bench import Numbers
from grpo_pl.commands.bench.against import checked_commit, compared, unpack
from grpo_pl.commands.bench.processes import Bench
from grpo_pl.commands.options import Options, new_file
from grpo_pl.config.by_name import config_file
from grpo_pl.system.refusal import fail

if TYPE_CHECKING:
    from grpo_pl.system.precision import DType

TRL = "trl==1.16.0"
PROMPTS, GROUP_SIZE, MAX_TOKENS = 8, 8, 64
REWARDS = {
    "*": None,
    "correct": "LastNumber",
    "short": {"class_path": "LengthPenalty", "init_args": {"max_tokens": 4096}},
}
WORK: dict[str, Any] = {
    "data.prompts_per_iteration": PROMPTS,
    "data.group_size": GROUP_SIZE,
    "data.minibatches": 1,
    "data.sampling.max_tokens": MAX_TOKENS,
    "data.sampling.temperature": 1.0,
    "data.val": "null",
    "model.rewards": json.dumps(REWARDS),
    "model.optimizer.init_args.lr": 0.0,
    "model.lr_scheduler": "null",
    "trainer.accumulate_grad_batches": PROMPTS,
    "checkpoint.every_n_epochs": 1_000_000,
    "checkpoint.save_last": "false",
}
LONG = "What is {a} {operator} {b}? Explain every step in great detail, as to a child, with many examples."
"""A prompt whose answers reach any limit."""
SCALING = {"data.group_size": (4, 8, 16, 32), "data.sampling.max_tokens": (32, 64, 128, 256)}
SCALING_PROMPTS = 2
"""Fewer than in the work itself: 8 groups of 32 would take an hour."""
SPLIT = {
    "products": "split: matrix products and attention",
    "traffic": "split: other operations (memory traffic)",
    "overhead": "split: between operations (Python, dispatch)",
}
Measure = Callable[..., list[Numbers]]
"""Runs a part: a `Bench`."""


def options_of(work: dict[str, Any], for_fit: list[str], dtype: "DType | None" = None) -> list[str]:
    """The command line of a part: the config, the work, the type it computes in, and the user's options."""
    from grpo_pl.system.precision import PRECISIONS, device_here, measured_rates

    dtype = dtype or measured_rates(device_here().type).fitting
    work = work | {"trainer.precision": PRECISIONS[dtype], "data.engine.init_args.dtype": dtype}
    options = [f"--{key}={value}" for key, value in work.items()]
    return ["--config", config_file("configs/quickstart.yaml"), *options, *for_fit]


def trl_folder() -> Path:
    """The folder that TRL is installed into, on top of this environment's packages."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "grpo_pl" / "bench" / TRL.replace("==", "-")
    if not (folder / "trl").is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
        missing = [name for name in ("accelerate", "datasets") if find_spec(name) is None]
        subprocess.run([*install, "--no-deps", TRL, *missing], check=True)
    return folder


def median(rows: list[Numbers], key: str) -> float:
    """The median over all iterations but the first."""
    return statistics.median(row[key] for row in rows[1:])


def limit(row: Numbers) -> float:
    """Seconds of the engine alone plus those of the faster forward and backward, padded or packed."""
    return row["engine_s"] + min(row["padded_s"], row["packed_s"])


def machine_limit(row: Numbers) -> float:
    """Seconds of the machine's limit."""
    return row["machine_engine_s"] + row["machine_update_s"]


def ratio_to(bound: Callable[[Numbers], float], rows: list[Numbers]) -> float:
    """The median of an iteration's time over a limit of it."""
    return statistics.median(row["iteration_s"] / bound(row) for row in rows[1:])


def summary(rows: list[Numbers]) -> dict[str, Any]:
    """The numbers of grpo_pl and of its limit."""
    stages = {name: median(rows, f"time/{name}_s") for name in ("sync", "generate", "score", "update")}
    whole = median(rows, "iteration_s")
    return {
        "ratio_to_limit": ratio_to(machine_limit, rows),
        "ratio_to_own_limit": ratio_to(limit, rows),
        "ratio_to_other_build": None,
        "ratio_to_peer": None,
        "peak_memory_ratio_to_peer": None,
        "sync_share": statistics.median(row["time/sync_s"] / row["iteration_s"] for row in rows[1:]),
        "stages": stages | {"other": whole - sum(stages.values()), "iteration": whole},
        "scaling": None,
        "limit": {key: median(rows, f"{key}_s") for key in ("engine", "padded", "packed")}
        | {"whole": statistics.median(limit(row) for row in rows[1:])},
        "machine": {
            key: median(rows, f"machine_{key}") for key in ("engine_s", "update_s", "gflops", "gib_per_s")
        },
        "tokens": {
            "response": median(rows, "rollout/tokens"),
            "to_read": median(rows, "tokens_to_read"),
            "per_s": statistics.median(row["rollout/tokens"] / row["iteration_s"] for row in rows[1:]),
            "padding": median(rows, "train/padding"),
        },
        "memory_gib": {"peak": median(rows, "peak_gib")},
        "peer": None,
    }


def precision_of(options: list[str]) -> str:
    """The last `--trainer.precision` of a command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--trainer.precision", dest="precision")
    return str(parser.parse_known_args(options)[0].precision)


def fastest_peer(bench: Measure, for_fit: list[str], iterations: int) -> dict[str, Any]:
    """TRL in its faster precision on this machine: float32, or the type that `auto` takes."""
    tried: dict[str, dict[str, Any]] = {}
    for options in (options_of(WORK, for_fit), options_of(WORK, for_fit, "float32")):
        if (precision := precision_of(options)) not in tried:
            rows = bench("peer", f"{TRL}, {precision}", options, iterations, str(trl_folder()))
            numbers = {key: median(rows, key) for key in ("iteration_s", "peak_gib", "response_tokens")}
            tried[precision] = numbers | {"precision": precision}
    return min(tried.values(), key=lambda peer: float(peer["iteration_s"]))


def scaling(bench: Measure, for_fit: list[str], iterations: int) -> dict[str, list[Numbers]]:
    """The cost of an iteration by the size of a group and by the length of responses."""
    costs: dict[str, list[Numbers]] = {}
    for key, values in SCALING.items():
        name = key.rpartition(".")[2]
        costs[name] = []
        for value in values:
            work = WORK | {key: value, "data.train.init_args.template": LONG}
            work |= {"data.prompts_per_iteration": SCALING_PROMPTS, "data.engine.init_args.kv_cache_gib": 1.0}
            of_16_sequences = max(int(work["data.group_size"]) * SCALING_PROMPTS // 16, 1)
            work["trainer.accumulate_grad_batches"] = min(of_16_sequences, SCALING_PROMPTS)  # whole groups
            rows = bench("train", f"{name} {value}", options_of(work, for_fit), iterations)
            tokens, whole = median(rows, "rollout/tokens"), median(rows, "iteration_s")
            costs[name].append(
                {
                    name: value,
                    "response_tokens": tokens,
                    "iteration_s": whole,
                    "ms_per_token": 1000 * whole / tokens,
                    "ratio_to_limit": ratio_to(machine_limit, rows),
                    "peak_gib": median(rows, "peak_gib"),
                }
            )
    return costs


def against(bench: Bench, commit: str, work: list[str], iterations: int) -> dict[str, Any]:
    """The numbers of this build, with its ratios to another one."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(commit, Path(folder))
        labels = "this build", commit[:9]
        ours, theirs = bench.in_turns("train", labels, ("", folder), work, iterations)
    return summary(ours) | {"ratio_to_other_build": compared(commit, ours, theirs)}


def measure(options: argparse.Namespace, for_fit: list[str]) -> dict[str, Any]:
    """All numbers that the options of `bench` ask for."""
    with Console(stderr=True).status("starting") as status:
        bench, work = Bench(status), options_of(WORK, for_fit)
        if options.against:
            numbers = against(bench, options.against, work, options.iterations)
        else:
            numbers = summary(bench("train", "grpo_pl and its limits", work, options.iterations))
        numbers["split"] = bench("split", "where the time goes", work, 2)[0]
        memory = numbers["memory_gib"]
        memory["engine_alone"] = bench("engine", "the engine's memory", work, 1)[0]["peak_gib"]
        memory["above_engine"] = memory["peak"] - memory["engine_alone"]
        if options.peer:
            numbers["peer"] = fastest_peer(bench, for_fit, options.peer_iterations)
            numbers["ratio_to_peer"] = numbers["peer"]["iteration_s"] / numbers["stages"]["iteration"]
            numbers["peak_memory_ratio_to_peer"] = memory["peak"] / numbers["peer"]["peak_gib"]
        if options.scaling:
            numbers["scaling"] = scaling(bench, for_fit, max(options.iterations - 2, 2))
    numbers["precision"] = precision_of(work)
    return numbers | {"work": {key: str(value) for key, value in WORK.items()} | {"options": for_fit}}


def show(numbers: dict[str, Any]) -> None:
    """Print the tables."""
    console, stages, limits, peer = Console(), numbers["stages"], numbers["limit"], numbers["peer"]
    table = Table("what", "seconds", "share", title=f"an iteration (medians), {numbers['precision']}")
    for name, value in stages.items():
        table.add_row(name, f"{value:.2f}", f"{value / stages['iteration']:.0%}")
    table.add_section()
    machine, split = numbers["machine"], numbers["split"]
    table.add_row("machine's limit: engine", f"{machine['engine_s']:.2f}", "")
    table.add_row("machine's limit: forward and backward", f"{machine['update_s']:.2f}", "")
    table.add_row("our limit: engine alone", f"{limits['engine']:.2f}", "")
    table.add_row("our limit: forward and backward, padded", f"{limits['padded']:.2f}", "")
    table.add_row("our limit: forward and backward, packed", f"{limits['packed']:.2f}", "")
    for name in ("products", "traffic", "overhead"):
        table.add_row(SPLIT[name], f"{split[f'{name}_s']:.2f}", f"{split[f'{name}_s'] / split['wall_s']:.0%}")
    if peer:
        table.add_row(f"{TRL}, {peer['precision']}", f"{peer['iteration_s']:.2f}", "")
    console.print(table)
    memory, tokens = numbers["memory_gib"], numbers["tokens"]
    lines = {
        "ratio to the machine's limit": f"{numbers['ratio_to_limit']:.2f}",
        "the machine": f"{machine['gflops']:.0f} GFLOP/s in products, reads {machine['gib_per_s']:.0f} GiB/s",
        "ratio to our limit": f"{numbers['ratio_to_own_limit']:.2f}",
        "cores idle": f"{split['idle']:.0%}",
        "weight sync": f"{numbers['sync_share']:.1%} of an iteration",
        "response tokens": f"{tokens['response']:.0f}, {tokens['per_s']:.0f} a second",
        "positions without a token": f"{tokens['padding']:.0%}",
        "peak memory": f"{memory['peak']:.2f} GiB, {memory['above_engine']:.2f} above the engine's own",
    }
    for name, found in (numbers["ratio_to_other_build"] or {}).items():
        if name != "commit":
            lines[f"{name} to the other build's"] = "{mean:.3f} ({low:.3f} to {high:.3f})".format(**found)
    if peer:
        lines["iteration rate to TRL's"] = f"{numbers['ratio_to_peer']:.1f} times"
        lines["peak memory to TRL's"] = f"{numbers['peak_memory_ratio_to_peer']:.2f}"
    for name, text in lines.items():
        console.print(f"{name:30} {text}")
    for name, rows in (numbers["scaling"] or {}).items():
        table = Table(*rows[0], title=f"growth with {name}")
        for row in rows:
            table.add_row(*(f"{value:.4g}" for value in row.values()))
        console.print(table)


def bench(args: list[str]) -> None:
    """Measure, print the tables, and write the numbers."""
    parser = Options("bench", __doc__ or "")
    add = parser.add_argument
    add("--iterations", type=int, default=5, help="the first is left out (%(default)s)")
    add("--peer", action="store_true", help="measure TRL too")
    add("--peer-iterations", type=int, default=3, help="the first is left out (%(default)s)")
    add("--scaling", action=argparse.BooleanOptionalAction, default=True, help="measure growth, too")
    add("--out", type=new_file, help="a file for the numbers, as JSON")
    add("--against", metavar="COMMIT", help="another build of grpo_pl, on the same work by turns")
    options, for_fit = parser.split(args, policy_alone=True)
    options.against = options.against and checked_commit(options.against)
    if min(options.iterations, options.peer_iterations) < 2:
        fail("bench: --iterations and --peer-iterations: expected 2 or more, for the first is left out")
    numbers = measure(options, for_fit)
    show(numbers)
    if options.out:
        options.out.write_text(json.dumps(numbers, indent=2) + "\n")
