"""TRL's GRPOTrainer on the work of `bench`: its own program, with its own libraries."""

import re
import time
from typing import Any

import torch

from grpo_pl.commands.bench import Numbers
from grpo_pl.config.cli import CLI
from grpo_pl.models.folders import resolve_pretrained
from grpo_pl.system.memory import forget_peak, peak_gib


def peer(cli: CLI) -> list[Numbers]:
    """The cost of each iteration of TRL."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    data: Any = cli.datamodule
    questions = [data.train[row] for row in range(min(len(data.train), 512))]
    rows = [{"prompt": [{"role": "user", "content": q.text}], "answer": q.answer} for q in questions]
    measured: list[Numbers] = []

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

    model = str(resolve_pretrained(data.pretrained))
    trainer = GRPOTrainer(model, reward, settings(cli), train_dataset=Dataset.from_list(rows))
    trainer.add_callback(Clock())
    trainer.train()
    return measured


def reward(completions: list[Any], answer: list[str], **_: object) -> list[float]:
    """Whether the last number is the answer."""
    numbers = [re.findall(r"-?\d+", completion[0]["content"]) for completion in completions]
    return [float(bool(n) and n[-1] == gold) for n, gold in zip(numbers, answer, strict=True)]


def settings(cli: CLI) -> Any:
    """The same work as a config of TRL."""
    from trl import GRPOConfig

    data: Any = cli.datamodule
    micro_batches = cli.trainer.accumulate_grad_batches
    return GRPOConfig(
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
