"""The parts of `bench`, each measured in a process of its own.

python -m grpo_pl.commands.bench.parts {train,split,engine,peer} ITERATIONS RESULT [any option of `fit`]
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile

from grpo_pl.callbacks.metrics_table import newest_row
from grpo_pl.commands.bench import Numbers
from grpo_pl.commands.bench.machine_limit import Machine, Network, Read, engine_seconds, update_seconds
from grpo_pl.commands.bench.peer import peer
from grpo_pl.config.cli import CLI, configure
from grpo_pl.config.exits import mistakes_answered
from grpo_pl.models.packing import sequence_ends
from grpo_pl.rollout.engine import requests_of
from grpo_pl.rollout.stored import StoredRollouts
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.rollout.vllm_requests import sampling_params
from grpo_pl.system.memory import forget_peak, peak_gib, release_free_memory
from grpo_pl.system.output import tame_logs
from grpo_pl.system.precision import PRECISIONS

PRODUCTS = "mm", "linear", "attention", "attn"
"""Words in the names of operations that multiply matrices."""


def seconds(work: Callable[[], Any]) -> float:
    """The running time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Measure(pl.Callback):
    """Measures an iteration from its first moment to its last, and then its limit."""

    def __init__(self) -> None:
        self.rows: list[Numbers] = []
        self._batches: list[Any] = []
        self._start = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        """Start the clock, with freed memory handed back and the peak forgotten."""
        release_free_memory()
        forget_peak()
        self._batches, self._start = [], time.perf_counter()

    def on_train_batch_start(self, _: object, __: object, batch: Any, ___: object) -> None:
        """Keep the micro-batch, to be read again."""
        self._batches.append(batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stop the clock; then generate and read the same again, with nothing around it."""
        measured = {"iteration_s": time.perf_counter() - self._start, "peak_gib": peak_gib()}
        row = (newest_row(trainer) or {}) | measured
        engine = trainer.datamodule.engine  # type: ignore[attr-defined]
        engine.load_weights(module.policy_weights(), version=module.version)  # type: ignore[operator]
        row["engine_s"] = seconds_of_engine(trainer)
        engine.rest()
        row |= machine_numbers(trainer, module, self._batches)
        for name, forward in (("padded_s", padded), ("packed_s", packed)):
            module.zero_grad(set_to_none=True)
            release_free_memory()
            start = time.perf_counter()
            with torch.enable_grad():
                for batch in self._batches:
                    with trainer.precision_plugin.forward_context():
                        loss = forward(module.policy, batch)
                    loss.backward()
            row[name] = time.perf_counter() - start
        module.zero_grad(set_to_none=True)
        self.rows.append(row)
        print(f"measured {len(self.rows)} of {trainer.max_epochs}", flush=True)


def machine_numbers(trainer: Any, module: Any, batches: Sequence[Any]) -> Numbers:
    """What the machine can do at this moment, and its limit for these micro-batches of an iteration."""
    dtype = next(name for name, precision in PRECISIONS.items() if precision == trainer.precision)
    machine = Machine.measured(module.device, getattr(torch, dtype))
    network = Network.of(module.policy.language_model)
    rows = [
        [(tokens[:end], mask[:end]) for tokens, mask, end in zip(*columns, strict=True)]
        for batch in batches
        for columns in [(batch.token_ids.tolist(), batch.loss_mask.tolist(), sequence_ends(batch.loss_mask))]
    ]
    size = trainer.accumulate_grad_batches
    steps = [[row for of_batch in rows[i : i + size] for row in of_batch] for i in range(0, len(rows), size)]
    data = trainer.datamodule
    prompts = [prompt.token_ids for prompt in data.prompts_of(trainer.current_epoch)]
    lengths = [sum(mask) for of_batch in rows for _, mask in of_batch]
    itemsize = data.engine.weights_dtype.itemsize
    reads = [Read.of(step) for step in steps]
    return {
        "machine_gflops": machine.flops / 1e9,
        "machine_gib_per_s": machine.bandwidth / 2**30,
        "machine_update_s": update_seconds(network, reads, machine),
        "machine_engine_s": engine_seconds(network, prompts, lengths, itemsize, machine),
        "tokens_to_read": float(sum(read.tokens for read in reads)),
    }


def seconds_of_engine(trainer: Any) -> float:
    """Seconds of the engine alone on the requests of this iteration."""
    data = trainer.datamodule
    prompts = data.prompts_of(trainer.current_epoch)
    engine = data.engine.engine if isinstance(data.engine, StoredRollouts) else data.engine
    if not isinstance(engine, VLLMEngine):
        return seconds(lambda: engine.generate(prompts, data.group_size, data.sampling))
    llm, requests = engine.llm, requests_of(prompts, data.group_size, data.sampling)
    token_ids: Any = [{"prompt_token_ids": request.token_ids} for request in requests]
    params = [sampling_params(request) for request in requests]
    return seconds(lambda: llm.generate(token_ids, params, use_tqdm=False))


def padded(policy: Any, batch: Any) -> torch.Tensor:
    """The negative log-likelihood of the responses, as transformers' users write it."""
    logits = policy.language_model(input_ids=batch.token_ids, use_cache=False).logits[:, :-1]
    targets = batch.token_ids[:, 1:].masked_fill(~batch.loss_mask[:, 1:], -100)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def packed(policy: Any, batch: Any) -> torch.Tensor:
    """The log-likelihood of the responses by grpo_pl's policy alone."""
    logprobs: torch.Tensor = policy(batch.token_ids, batch.loss_mask, batch.temperature).logprobs
    return logprobs.sum()


def train(cli: CLI) -> list[Numbers]:
    """grpo_pl, and after each iteration its limit."""
    measure = Measure()
    cli.trainer.callbacks.append(measure)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    return measure.rows


def engine(cli: CLI) -> list[Numbers]:
    """The peak memory of a process that holds nothing but the engine, after one iteration's responses."""
    data: Any = cli.datamodule
    prompts = data.read_prompts("train", data.train)
    data.engine.start(
        max_sequence_tokens=data.max_prompt_tokens + data.sampling.max_tokens,
        max_sequences=data.prompts_per_iteration * data.group_size,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    first = [prompts[i] for i in range(data.prompts_per_iteration)]
    data.engine.generate(first, data.group_size, data.sampling)
    return [{"peak_gib": peak_gib()}]


class Split(pl.Callback):
    """Where the time of the second iteration goes, by torch's profiler, which takes a little itself."""

    def __init__(self) -> None:
        self.found: Numbers = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Start the profiler in the second iteration."""
        if trainer.current_epoch == 1:
            self._profiler = profile(activities=[ProfilerActivity.CPU])
            self._start, self._cpu = time.perf_counter(), time.process_time()
            self._profiler.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Add its operations up."""
        if trainer.current_epoch != 1:
            return
        wall, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        self._profiler.stop()
        products = others = 0.0
        for event in self._profiler.key_averages():
            if "::" in event.key and any(word in event.key for word in PRODUCTS):
                products += event.self_cpu_time_total / 1e6
            elif "::" in event.key:
                others += event.self_cpu_time_total / 1e6
        idle = max(1 - cpu / wall / torch.get_num_threads(), 0.0)
        rest = wall - products - others
        self.found = {
            "wall_s": wall,
            "products_s": products,
            "traffic_s": others,
            "overhead_s": rest,
            "idle": idle,
        }


def split(cli: CLI) -> list[Numbers]:
    """Where the time of an iteration goes."""
    callback = Split()
    cli.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    return [callback.found]


PARTS = {"train": train, "split": split, "engine": engine, "peer": peer}


def main() -> None:
    """Measure one part and write its numbers."""
    part, iterations, result, *options = sys.argv[1:]
    tame_logs()
    with mistakes_answered(), tempfile.TemporaryDirectory() as folder:
        run = ("--trainer.default_root_dir", folder, "--trainer.max_epochs", iterations)
        Path(result).write_text(json.dumps(PARTS[part](configure([*options, *run]))))


if __name__ == "__main__":
    main()
