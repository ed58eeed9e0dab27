"""RolloutDataModule: prompts in, micro-batches of experience out."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from grpo_pl.functional import derive_seed, even_parts, rounds
from grpo_pl.loop import Learner, experience_stream
from grpo_pl.minibatches import UpdateSchedule
from grpo_pl.models.loading import load_tokenizer
from grpo_pl.prompts.chat import ChatFormat, Tokenizer
from grpo_pl.prompts.prompt_set import PromptSet, iteration_prompts
from grpo_pl.prompts.sources import PromptSource
from grpo_pl.rollout.dynamic_sampling import DynamicSampling
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.parquet import file_name, forget_iterations, save_rollout
from grpo_pl.rollout.sampling import Sampler
from grpo_pl.rollout.shared import shared
from grpo_pl.rollout.stored import forget, forget_all, stored
from grpo_pl.runs.layout import ROLLOUTS_FOLDER
from grpo_pl.runs.safe_loading import state_of
from grpo_pl.system.heartbeat import heartbeat
from grpo_pl.system.refusal import about, check_at_least
from grpo_pl.training.checks.engines import check_engines, check_sampling, check_whose_rollouts
from grpo_pl.training.checks.prompts import check_context, check_prompts, check_unchanged, warn_of_settings
from grpo_pl.training.checks.schedule import check_schedule, check_trainer
from grpo_pl.training.ranks import AttachedDataModule
from grpo_pl.training.stream import Stream
from grpo_pl.types import Experience, Prompt, Rollout

log = logging.getLogger(__name__)


class RolloutDataModule(AttachedDataModule):
    """Prompts, the engine that answers them, and the schedule of updates on a rollout.

    One Lightning epoch is one iteration: a rollout of `prompts_per_iteration * group_size` responses, then
    `update_epochs * minibatches` optimizer steps, each over `trainer.accumulate_grad_batches` micro-batches.
    So `trainer.max_epochs`, `check_val_every_n_epoch` and a checkpoint's `every_n_epochs` all count
    iterations.

    Args:
        train: Where training prompts come from.
        engine: Samples the responses.
        val: Where validation prompts come from; null for no validation.
        val_engine: Answers validation prompts where `engine` does not sample.
        pretrained: Model folder or hub name of the tokenizer; where empty, the one of `--pretrained`.
        format: How a question becomes a prompt.
        prompts_per_iteration: Prompts of one iteration, over all ranks.
        group_size: Responses to each prompt.
        minibatches: Optimizer steps in one pass over a rollout.
        update_epochs: Passes over a rollout.
        keep_groups: Keep the responses to a prompt in one micro-batch (for `row_tokens`) instead of
            shuffling all responses.
        resample: DynamicSampling to replace groups without a signal; null to keep them.
        sampling: How training responses are drawn.
        max_prompt_tokens: The longest prompt, in tokens.
        long_prompts: What to do with longer ones: refuse the data, drop them (counted), or keep their end.
        changed_prompts: Whether to refuse a run that resumes with other prompts or gold answers, or warn.
        val_max_tokens: The longest validation response, in tokens; null for the limit of `sampling`.
        val_samples: Responses to each validation prompt for pass@k and majority@k, drawn as `sampling` says;
            0 for greedy accuracy alone.
        val_prompts_per_batch: Validation prompts that the engine gets at once.
        store_rollouts: Keep the rollouts since the last checkpoint but one in the run's folder, so that a
            resumed run learns from the same ones, whatever the engine is.
        keep_rollouts: Also keep the rollouts of every iteration, with their rewards, as Parquet files that
            ReplayEngine reads.
        seed: Seed of the order of prompts, of every response, and of the minibatches.
    """

    def __init__(
        self,
        train: PromptSource,
        engine: RolloutEngine,
        val: PromptSource | None = None,
        val_engine: RolloutEngine | None = None,
        pretrained: str = "",
        format: ChatFormat = ChatFormat(),
        prompts_per_iteration: int = 8,
        group_size: int = 8,
        minibatches: int = 1,
        update_epochs: int = 1,
        keep_groups: bool = False,
        resample: DynamicSampling | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        max_prompt_tokens: int = 512,
        long_prompts: Literal["error", "drop", "truncate"] = "error",
        changed_prompts: Literal["error", "warn"] = "error",
        val_max_tokens: int | None = None,
        val_samples: int = 0,
        val_prompts_per_batch: int = 256,
        store_rollouts: bool = True,
        keep_rollouts: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(
            1,
            prompts_per_iteration=prompts_per_iteration,
            group_size=group_size,
            minibatches=minibatches,
            update_epochs=update_epochs,
            val_prompts_per_batch=val_prompts_per_batch,
        )
        check_sampling(sampling, val_max_tokens, val_samples)
        self.train, self.val, self.engine = train, val, engine
        self.pretrained, self.format = pretrained, format
        self.prompts_per_iteration, self.group_size = prompts_per_iteration, group_size
        self.minibatches, self.update_epochs, self.keep_groups = minibatches, update_epochs, keep_groups
        self.sampling, self.resample, self.changed_prompts = sampling, resample, changed_prompts
        self.max_prompt_tokens, self.long_prompts = max_prompt_tokens, long_prompts
        self.val_sampling = SamplingConfig(max_tokens=val_max_tokens or sampling.max_tokens, temperature=0.0)
        self.val_samples, self.val_prompts_per_batch, self.seed = val_samples, val_prompts_per_batch, seed
        self.val_engine, self.store_rollouts, self.keep_rollouts = val_engine, store_rollouts, keep_rollouts
        self._checkpoints: list[int] = []
        self.on_stage: Callable[[str], None] = lambda _: None
        self._started = False

    # ------------------------------------------------------------------------------------------------- set-up

    @property
    def learner(self) -> Learner:
        """The LightningModule, as the loop sees it."""
        return cast(Learner, self._trainer.lightning_module)

    @override
    def setup(self, stage: str) -> None:
        """Check everything that is cheap to check, read the prompts, then start the engine."""
        if self._started:
            return
        self.start(stage)
        for engine in self._engines:
            engine.rest()
        self._started = True

    def start(self, stage: str) -> None:
        """`setup`, but the engine stays awake, with the pretrained weights."""
        self.check(stage)
        self._read_all_prompts(stage)
        log.info("starting %s", ", ".join(type(engine).__name__ for engine in self._engines))
        together = max(engine.ranks for engine in self._engines)
        of_ranks = self._ranks.copies, self._trainer.global_rank, self._trainer.world_size
        if self.store_rollouts and stage == "fit" and self._trainer.checkpoint_callbacks:
            self.engine = stored(self.engine, self._rollouts)
        self.engine = shared(self.engine, *of_ranks)
        self.val_engine = self.val_engine and shared(self.val_engine, *of_ranks)
        responses = self.prompts_per_iteration * self.group_size // self._ranks.size
        with heartbeat(lambda: "starting engines") if self._trainer.is_global_zero else nullcontext():
            for engine in self._engines:
                engine.start(
                    max_sequence_tokens=self.max_prompt_tokens + self._longest_response,
                    max_sequences=max(responses, self.val_prompts_per_batch) * together,
                    device=self._trainer.strategy.root_device,
                )
        if stage == "fit":
            for iteration in {0, self.end - 1 if self.end < sys.maxsize else 0}:
                self.engine.check(self.prompts_of(iteration), self.group_size, self.sampling)

    @property
    def _engines(self) -> list[RolloutEngine]:
        return [self.engine] if self.val_engine is None else [self.engine, self.val_engine]

    def _read_all_prompts(self, stage: str) -> None:
        self.prompts: dict[str, PromptSet] = {}
        for name, source in {"train": self.train if stage == "fit" else None, "val": self.val}.items():
            if source is not None:
                prompts = self.prompts[name] = self.read_prompts(name, source)
                check_prompts(prompts, self.pretrained, self._ranks.size)
                self.learner.check_prompts(prompts.key, prompts.rows)
        if stage == "fit" and self.changed_prompts == "error":  # when Lightning loads it, the engine runs
            state = state_of(type(self).__qualname__, self._trainer.ckpt_path)
            check_unchanged(state, self.prompts, self.changed_prompts)

    def check(self, stage: str) -> None:
        """Refuse settings that do not go together."""
        if stage == "fit":
            check_trainer(self._trainer, optimizer_steps=self.update_epochs * self.minibatches)
            micro_batches, smallest = self._trainer.accumulate_grad_batches, self.learner.min_group_size
            check_schedule(self, micro_batches, ranks=self._ranks.size, min_group_size=smallest)
            self.learner.check_resampling(self.resample)
            check_whose_rollouts(self.engine, self._rollouts.parent, self.learner.corrects_mismatch)
        validates = self.val is not None and self._trainer.limit_val_batches != 0
        check_engines(self.engine, self.val_engine, validates)
        check_context(self.pretrained, self.max_prompt_tokens, self._longest_response)
        warn_of_settings(self.pretrained)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.pretrained)

    def read_prompts(self, name: str, source: PromptSource) -> PromptSet:
        """The encoded prompts of `data.<name>`."""
        with about(self):
            return PromptSet(
                source,
                self.format,
                self._tokenizer,
                max_prompt_tokens=self.max_prompt_tokens,
                long_prompts=self.long_prompts,
                key=f"data.{name}",
            )

    @property
    def _longest_response(self) -> int:
        return max(self.sampling.max_tokens, self.val_sampling.max_tokens)

    # ------------------------------------------------------------------------------------------------ streams

    @override
    def train_dataloader(self) -> Iterable[Experience]:
        """Each pass over it is one iteration of one generator for the whole run."""
        schedule = UpdateSchedule(
            minibatches=self.minibatches,
            update_epochs=self.update_epochs,
            micro_batches=self._trainer.accumulate_grad_batches,
            seed=self.seed,
            keep_groups=self.keep_groups,
        )
        loop = experience_stream(
            self.learner, self.sampler, schedule, self._iterations(), self.end, self._keep, self.on_stage
        )
        batches = schedule.batches_per_iteration
        return DataLoader(Stream(lambda: islice(loop, batches), batches), batch_size=None)

    def _other_prompts(self, iteration: int, again: int, count: int) -> list[Prompt]:
        """Prompts on this rank for round `again` of an iteration's dynamic sampling."""
        return iteration_prompts(
            self.prompts["train"],
            iteration=iteration,
            prompts_per_iteration=count,
            seed=derive_seed(self.seed, "again", again, self._ranks.rank),
        )

    def _iterations(self) -> Iterator[int]:
        if self.keep_rollouts and self._trainer.is_global_zero:
            forget_iterations(self._rollouts, after=self._trainer.current_epoch)
        while True:
            if len(self._checkpoints) > 1:
                forget(self._rollouts, before=self._checkpoints[-2])
            yield self._trainer.current_epoch

    def _keep(self, iteration: int, rollout: Rollout, experience: Experience) -> None:
        ranks = self._ranks
        if self.keep_rollouts and self._trainer.global_rank % ranks.copies == 0:
            path = self._rollouts / file_name(iteration + 1, ranks.rank, ranks.size)
            save_rollout(rollout, path, iteration + 1, experience.records)

    @property
    def _rollouts(self) -> Path:
        """The folder of stored and kept rollouts."""
        return Path(self._trainer.default_root_dir) / ROLLOUTS_FOLDER

    @property
    def end(self) -> int:
        """The most iterations that the run has."""
        epochs, steps = self._trainer.max_epochs or -1, self._trainer.max_steps
        ends = [epochs, steps // (self.update_epochs * self.minibatches)]
        return min((end for end in ends if end > 0), default=sys.maxsize)

    @property
    def sampler(self) -> Sampler:
        """Samples the rollout of an iteration on this rank, with the engine's current weights."""
        return Sampler(
            engine=self.engine,
            prompts_of=self.prompts_of,
            group_size=self.group_size,
            sampling=self.sampling,
            with_greedy=self.learner.needs_greedy,
            resample=self.resample,
            judge=self.learner,
            other_prompts=self._other_prompts,
            on_any_rank=lambda local: bool(self.learner.sum_over_ranks(torch.tensor(int(local))) > 0),
        )

    def prompts_of(self, iteration: int) -> list[Prompt]:
        """Prompts on this rank of an iteration."""
        ranks = self._ranks
        with about(self):
            return iteration_prompts(
                self.prompts["train"],
                iteration=iteration,
                prompts_per_iteration=self.prompts_per_iteration,
                seed=self.seed,
                rank=ranks.rank,
                world_size=ranks.size,
            )

    @override
    def val_dataloader(self) -> Iterable[Rollout]:
        """Each pass over it syncs the weights and answers all validation prompts."""
        if self.val is None:
            return []
        rollouts = self._val_chunks * (2 if self.val_samples else 1)
        return DataLoader(Stream(self._val_rollouts, rollouts), batch_size=None)

    @property
    def _val_chunks(self) -> int:
        """Calls of the engine in a validation, as many on every rank, for several may share one engine."""
        return rounds(len(self.prompts["val"]), self._ranks.size, at_once=self.val_prompts_per_batch)

    def _val_rollouts(self) -> Iterator[Rollout]:
        self.on_stage("validate")
        engine, ranks = self.val_engine or self.engine, self._ranks
        engine.load_weights(self.learner.policy_weights(engine.weights_dtype), version=self.learner.version)
        rows = range(ranks.rank, len(self.prompts["val"]), ranks.size)
        prompts = [replace(self.prompts["val"][row], seed=derive_seed(self.seed, "val", row)) for row in rows]
        for some in even_parts(len(prompts), self._val_chunks):
            yield engine.generate(prompts[some.start : some.stop], 1, self.val_sampling)
            if self.val_samples:
                yield engine.generate(prompts[some.start : some.stop], self.val_samples, self.sampling)
            self.on_stage(f"validate {some.stop}/{len(prompts)}")
        engine.rest()

    @override
    def state_dict(self) -> dict[str, Any]:
        """The rollouts that the engine has sampled ahead, and what tells these prompts from others."""
        self._checkpoints.append(self.learner.version)
        fingerprints = {name: prompts.fingerprint for name, prompts in self.prompts.items()}
        return {"prompts": fingerprints} | self.engine.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "train" in self.prompts:  # `validate` may ask what it wants
            check_unchanged(state_dict, self.prompts, self.changed_prompts)
        self.engine.load_state_dict(state_dict)

    @override
    def teardown(self, stage: str) -> None:
        for engine in self._engines:
            engine.shutdown()
        self._started = False
        if stage == "fit" and self._trainer.is_global_zero and not self._trainer.should_stop:
            forget_all(self._rollouts)


def connect(trainer: pl.Trainer, module: pl.LightningModule, data: RolloutDataModule) -> None:
    """Connect the three, as the Trainer does before `setup`."""
    data.trainer = module.trainer = trainer
    trainer.strategy.connect(module)
