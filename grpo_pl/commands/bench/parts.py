"""What `tools/bench.py` measures, each part in a process of its own.

python tools/bench_parts.py {train,engine,peer} ITERATIONS RESULT [any option of `grpo_pl fit`]
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout need not be installed

import grpo_pl  # noqa: F401, I001  # before torch, as in a run: how threads wait
import lightning.pytorch as pl
import torch

from grpo_pl.callbacks.metrics_table import newest_row
from grpo_pl.config.cli import CLI, configure
from grpo_pl.system.memory import forget_peak, peak_gib, release_free_memory
from grpo_pl.config.exits import mistakes_answered
from grpo_pl.models.loading import resolve_pretrained
from grpo_pl.system.output import tame_logs
from grpo_pl.rollout.stored import StoredRollouts
from grpo_pl.rollout.vllm import VLLMEngine, requests

Numbers = dict[str, float]


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Measure(pl.Callback):
    """Measures an iteration from its first moment to its last, and then what it had to cost."""

    def __init__(self) -> None:
        self.rows: list[Numbers] = []
        self._batches: list[Any] = []
        self._start = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        """Begin."""
        release_free_memory()
        forget_peak()
        self._batches, self._start = [], time.perf_counter()

    def on_train_batch_start(self, _: object, __: object, batch: Any, ___: object) -> None:
        """Keep what is read."""
        self._batches.append(batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """End; then generate and read the same again, with nothing around it."""
        whole, peak = time.perf_counter() - self._start, peak_gib()
        row = (newest_row(trainer) or {}) | {"iteration_s": whole, "peak_gib": peak}
        engine = trainer.datamodule.engine  # type: ignore[attr-defined]
        engine.load_weights(module.policy_weights(), version=module.version)  # type: ignore[operator]
        row["engine_s"] = engine_seconds(trainer)
        engine.rest()
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


def engine_seconds(trainer: Any) -> float:
    """The engine alone on the requests of this iteration."""
    data = trainer.datamodule
    prompts = data.prompts_of(trainer.current_epoch)
    engine = data.engine.engine if isinstance(data.engine, StoredRollouts) else data.engine
    if not isinstance(engine, VLLMEngine):
        return seconds(lambda: engine.generate(prompts, data.group_size, data.sampling))
    llm, asked = engine.llm, requests(prompts, data.group_size, data.sampling)
    return seconds(lambda: llm.generate(*asked, use_tqdm=False))


def padded(policy: Any, batch: Any) -> torch.Tensor:
    """The negative log-likelihood of the responses, as transformers' users write it."""
    logits = policy.language_model(input_ids=batch.token_ids, use_cache=False).logits[:, :-1]
    targets = batch.token_ids[:, 1:].masked_fill(~batch.loss_mask[:, 1:], -100)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def packed(policy: Any, batch: Any) -> torch.Tensor:
    """The log-likelihood of the responses by grpo_pl's policy, and nothing else of grpo_pl."""
    logprobs: torch.Tensor = policy(batch.token_ids, batch.loss_mask, batch.temperature).logprobs
    return logprobs.sum()


def train(cli: CLI) -> list[Numbers]:
    """grpo_pl, and after each iteration its limit."""
    measure = Measure()
    cli.trainer.callbacks.append(measure)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    return measure.rows


def engine(cli: CLI) -> list[Numbers]:
    """The peak memory of a process that holds nothing but the engine, after it has answered an iteration."""
    data: Any = cli.datamodule
    prompts = data.read_prompts("train", data.train)
    asked = [prompts[i] for i in range(data.prompts_per_iteration)]
    data.engine.start(
        max_sequence_tokens=data.max_prompt_tokens + data.sampling.max_tokens,
        max_sequences=data.prompts_per_iteration * data.group_size,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    data.engine.generate(asked, data.group_size, data.sampling)
    return [{"peak_gib": peak_gib()}]


def peer(cli: CLI) -> list[Numbers]:
    """TRL's GRPOTrainer on the same prompts."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    data: Any = cli.datamodule
    questions = [data.train[row] for row in range(min(len(data.train), 512))]
    rows = [{"prompt": [{"role": "user", "content": q.text}], "answer": q.answer} for q in questions]
    micro_batches = cli.trainer.accumulate_grad_batches
    measured: list[Numbers] = []

    def reward(completions: list[Any], answer: list[str], **_: object) -> list[float]:
        said = [re.findall(r"-?\d+", completion[0]["content"]) for completion in completions]
        return [float(bool(s) and s[-1] == gold) for s, gold in zip(said, answer, strict=True)]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            forget_peak()
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            measured.append({"iteration_s": time.perf_counter() - self.start, "peak_gib": peak_gib()})

        def on_log(self, *_: object, logs: Numbers | None = None, **__: object) -> None:
            if logs and "completions/mean_length" in logs:
                measured[-1]["response_tokens"] = float(logs["completions/mean_length"])
                print(f"measured {len(measured)} of {cli.trainer.max_epochs}", flush=True)

    config = GRPOConfig(
        output_dir=cli.trainer.default_root_dir,
        per_device_train_batch_size=data.prompts_per_iteration * data.group_size // micro_batches,
        gradient_accumulation_steps=micro_batches,
        num_generations=data.group_size,
        max_completion_length=data.sampling.max_tokens,
        temperature=data.sampling.temperature,
        max_steps=cli.trainer.max_epochs,
        learning_rate=1e-9,
        bf16=cli.trainer.precision == "bf16-mixed",
        fp16=cli.trainer.precision == "16-mixed",
        use_cpu=not torch.cuda.is_available(),
        beta=0.0,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32"},
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    model = resolve_pretrained(data.pretrained)
    trainer = GRPOTrainer(str(model), reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows))
    trainer.add_callback(Clock())
    trainer.train()
    return measured


PARTS = {"train": train, "engine": engine, "peer": peer}


def main() -> None:
    """Measure one part and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("iterations", type=int)
    parser.add_argument("result", type=Path)
    said, options = parser.parse_known_args()
    tame_logs()
    with mistakes_answered(), tempfile.TemporaryDirectory() as folder:
        run = ("--trainer.default_root_dir", folder, "--trainer.max_epochs", str(said.iterations))
        said.result.write_text(json.dumps(PARTS[said.part](configure([*options, *run]))))


if __name__ == "__main__":
    main()
