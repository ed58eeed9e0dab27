"""RolloutDataModule: prompts in, micro-batches of experience out."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.loop import Learner, experience_stream
from grpo_pl.minibatches import UpdateSchedule
from grpo_pl.prompts.chat import ChatFormat
from grpo_pl.prompts.curriculum import Curriculum
from grpo_pl.prompts.pass_rates import Right
from grpo_pl.prompts.sources import PromptSource
from grpo_pl.prompts.tool_format import with_tools
from grpo_pl.rollout.dynamic_sampling import DynamicSampling
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.environment import with_environment
from grpo_pl.rollout.limits import Episodes
from grpo_pl.rollout.parquet import file_name, forget_iterations, save_rollout
from grpo_pl.rollout.sampling import Sampler
from grpo_pl.rollout.shared import shared
from grpo_pl.rollout.stored import forget, forget_all, stored
from grpo_pl.rollout.validation import ValidationSampler
from grpo_pl.runs.layout import ROLLOUTS_FOLDER
from grpo_pl.system.heartbeat import heartbeat
from grpo_pl.system.refusal import check_at_least
from grpo_pl.training.checks.engines import (
    check_engines,
    check_sampling,
    check_whose_rollouts,
    warn_of_episodes,
)
from grpo_pl.training.checks.prompts import check_context, check_curriculum, check_right, warn_of_settings
from grpo_pl.training.checks.schedule import check_schedule, check_trainer
from grpo_pl.training.prompt_data import PromptDataModule
from grpo_pl.training.stream import Stream
from grpo_pl.types import Experience, Rollout

log = logging.getLogger(__name__)


class RolloutDataModule(PromptDataModule):
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
        environment: Answers the policy between its turns; null for one answer to each prompt.
        episodes: The limits of an episode with the environment, and what its ends mean.
        prompts_per_iteration: Prompts of one iteration, over all ranks.
        group_size: Responses to each prompt.
        minibatches: Optimizer steps in one pass over a rollout.
        update_epochs: Passes over a rollout.
        keep_groups: Keep the responses to a prompt in one micro-batch, where the prompt is read once for
            all of them, instead of shuffling all responses.
        resample: DynamicSampling to replace groups without a signal; null to keep them.
        curriculum: Which prompts are drawn less often, by their pass rates; null draws all alike.
        pass_rates: Which responses count as right in the pass rates of prompts.
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

    _started = False

    def __init__(
        self,
        train: PromptSource,
        engine: RolloutEngine,
        val: PromptSource | None = None,
        val_engine: RolloutEngine | None = None,
        pretrained: str = "",
        format: ChatFormat = ChatFormat(),
        environment: Environment | None = None,
        episodes: Episodes = Episodes(),
        prompts_per_iteration: int = 8,
        group_size: int = 8,
        minibatches: int = 1,
        update_epochs: int = 1,
        keep_groups: bool = False,
        resample: DynamicSampling | None = None,
        curriculum: Curriculum | None = None,
        pass_rates: Right = Right(),
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
        check_at_least(1, prompts_per_iteration=prompts_per_iteration, group_size=group_size)
        check_at_least(1, minibatches=minibatches, update_epochs=update_epochs)
        check_at_least(1, val_prompts_per_batch=val_prompts_per_batch)
        check_sampling(sampling, val_max_tokens, val_samples)
        self.train, self.val, self.engine, self.val_engine = train, val, engine, val_engine
        self.pretrained, self.changed_prompts = pretrained, changed_prompts
        self.environment, self.episodes = environment, episodes
        tools = [] if environment is None else environment.tools
        self.plain_format, self.format = format, with_tools(format, episodes.calls_format, tools)
        self.prompts_per_iteration, self.group_size = prompts_per_iteration, group_size
        self.minibatches, self.update_epochs, self.keep_groups = minibatches, update_epochs, keep_groups
        self.sampling, self.resample = sampling, resample
        self.curriculum, self.pass_rates = curriculum, pass_rates
        self.max_prompt_tokens, self.long_prompts = max_prompt_tokens, long_prompts
        self.val_sampling = SamplingConfig(max_tokens=val_max_tokens or sampling.max_tokens, temperature=0.0)
        self.val_samples, self.val_prompts_per_batch, self.seed = val_samples, val_prompts_per_batch, seed
        self.store_rollouts, self.keep_rollouts = store_rollouts, keep_rollouts
        self._checkpoints: list[int] = []
        self.on_stage: Callable[[str], None] = lambda _: None

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
        self.read_all_prompts(stage, self.learner.check_prompts)
        if stage == "fit":
            self.order_prompts(self.engine.lookahead)
        log.info("starting %s", ", ".join(type(engine).__name__ for engine in self._engines))
        together = max(engine.ranks for engine in self._engines)
        of_ranks = self._ranks.copies, self._trainer.global_rank, self._trainer.world_size
        if self.environment is not None:
            self.engine = self.playing(self.engine)
            self.val_engine = self.val_engine and self.playing(self.val_engine)
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
            last = self.end - 1 if self.end < sys.maxsize and self.curriculum is None else 0
            for iteration in {0, last}:
                self.engine.check(self.prompts_of(iteration), self.group_size, self.sampling)

    def playing(self, engine: RolloutEngine) -> RolloutEngine:
        """The engine, playing episodes with the environment."""
        return with_environment(
            engine,
            environment=self.environment,
            limits=self.episodes,
            format=self.plain_format,
            max_prompt_tokens=self.max_prompt_tokens,
        )

    @property
    def _engines(self) -> list[RolloutEngine]:
        return [self.engine] if self.val_engine is None else [self.engine, self.val_engine]

    def check(self, stage: str) -> None:
        """Refuse settings that do not go together."""
        if stage == "fit":
            check_trainer(self._trainer, optimizer_steps=self.update_epochs * self.minibatches)
            micro_batches, smallest = self._trainer.accumulate_grad_batches, self.learner.min_group_size
            check_schedule(self, micro_batches, ranks=self._ranks.size, min_group_size=smallest)
            check_curriculum(self.curriculum, self.engine.lookahead)
            check_right(self.pass_rates, self.learner.reward_names)
            self.learner.check_resampling(self.resample)
            check_whose_rollouts(self.engine, self._rollouts.parent, self.learner.corrects_mismatch)
            self.learner.check_sampling(self.sampling)
        self.learner.check_environment(self.environment is not None)
        warn_of_episodes(self.environment is not None, self.episodes)
        validates = self.val is not None and self._trainer.limit_val_batches != 0
        check_engines(self.engine, self.val_engine, validates, self.sampling, self.learner.head_dtypes)
        check_context(
            self.pretrained, self.max_prompt_tokens, self._longest_response, self.environment is not None
        )
        warn_of_settings(self.pretrained)

    def longest(self, sampling: SamplingConfig) -> int:
        """The most tokens behind a prompt: those of a response, or of all that follows in an episode."""
        return sampling.max_tokens if self.environment is None else self.episodes.tokens

    @property
    def _longest_response(self) -> int:
        return max(self.longest(self.sampling), self.longest(self.val_sampling))

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

    def _iterations(self) -> Iterator[int]:
        if self.keep_rollouts and self._trainer.is_global_zero:
            forget_iterations(self._rollouts, after=self._trainer.current_epoch)
        while True:
            if len(self._checkpoints) > 1:
                forget(self._rollouts, before=self._checkpoints[-2])
            yield self._trainer.current_epoch

    def _keep(self, iteration: int, rollout: Rollout, experience: Experience) -> None:
        visited = self.visits.record(iteration, rollout, experience.records, self.learner.sum_over_ranks)
        experience.metrics |= visited
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
            other_prompts=partial(self.other_prompts, self.learner.sum_over_ranks),
            on_any_rank=lambda local: bool(self.learner.sum_over_ranks(torch.tensor(int(local))) > 0),
        )

    @override
    def val_dataloader(self) -> Iterable[Rollout]:
        """Each pass over it syncs the weights and answers all validation prompts."""
        if self.val is None:
            return []
        validation = ValidationSampler(
            prompts=self.prompts["val"],
            prompts_per_call=self.val_prompts_per_batch,
            greedy=self.val_sampling,
            samples=self.val_samples,
            sampling=self.sampling,
            seed=self.seed,
            rank=self._ranks.rank,
            ranks=self._ranks.size,
        )

        def rollouts() -> Iterator[Rollout]:
            self.on_stage("validate")
            engine = self.val_engine or self.engine
            weights = self.learner.policy_weights(engine.weights_dtype)
            engine.load_weights(weights, version=self.learner.version)
            yield from validation.sample(engine, self.on_stage)

        return DataLoader(Stream(rollouts, validation.rollouts), batch_size=None)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The prompts, the visits to them, and the rollouts that the engine has sampled ahead."""
        self._checkpoints.append(self.learner.version)
        return self.prompts_state() | self.engine.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "train" in self.prompts:  # `validate` may ask what it wants
            self.load_prompts_state(state_dict)
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
