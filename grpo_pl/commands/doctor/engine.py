"""Compares the config's own engine with the trainer: samples, scores, and attributes the differences."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from grpo_pl.commands.doctor.attribution import (
    BEYOND,
    Attribution,
    Hypothesis,
    attribute,
    by_position,
    summarize,
)
from grpo_pl.commands.doctor.episode import check_episode
from grpo_pl.commands.doctor.findings import Finding, Verdict, fail_if, good
from grpo_pl.commands.doctor.products import engines_products
from grpo_pl.commands.doctor.reading import (
    PERTURBATION,
    computed_otherwise,
    drawn_otherwise,
    perturb,
    positions,
    read,
    read_otherwise,
    stale_weights,
    targets,
)
from grpo_pl.commands.engine import started
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.models import LanguageModel
from grpo_pl.models.loading import load_config, load_tokenizer, sampling_defaults
from grpo_pl.module import PolicyOptimization
from grpo_pl.prompts.prompt_set import iteration_prompts
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.system.refusal import ConfigError
from grpo_pl.training.strategies import FSDP2Strategy
from grpo_pl.types import Prompt, Rollout

PROMPTS, RESPONSES, TOKENS = 8, 4, 64
"""The size of the rollout: prompts, responses to each, and tokens of the longest response."""
SERIOUS = 0.1
"""Unexplained nats on average that are a problem: ratios of policies are then off by a tenth."""
CONTEXT = 30
"""Characters before the worst token that are shown."""
FAILURES = ValueError, RuntimeError, OSError, ImportError, AssertionError, LookupError
"""The errors of engines, vLLM's and ours."""


def check_engine(
    trainer: pl.Trainer,
    module: PolicyOptimization,
    data: RolloutDataModule,
    on_stage: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Sample with the engine before and after a sync of perturbed weights, and explain every difference.

    Afterwards the engine is shut down; servers have the pretrained weights again.
    """
    if data.engine.offline or data.engine.ranks > 1:
        why = "has its responses already" if data.engine.offline else "needs several ranks"
        fix = "--data.engine.tensor_parallel_size 1, or the engine that the rollouts come from"
        return [Finding("engine", "warning", f"not compared: {type(data.engine).__name__} {why}", fix)]
    examination = Examination(trainer, module, data, on_stage)
    findings: list[Finding] = []
    try:
        for finding in examination.examine():
            findings.append(finding)  # one by one, so that those before a failure are kept
    except FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        found = f"{examination.stage} failed: {lines[0][:300]}"
        fix = "GRPO_PL_VERBOSE=1 shows more; with --data.engine InProcessEngine it is not vLLM"
        findings.append(Finding("engine", "problem", found, fix))
    return findings


@dataclass
class Examination:
    """The comparison of one engine with one trainer."""

    trainer: pl.Trainer
    module: PolicyOptimization
    data: RolloutDataModule
    on_stage: Callable[[str], None]
    stage: str = "the engine's start"

    def examine(self) -> Iterator[Finding]:
        """All findings, each as soon as it is known."""
        engine, begin = self.data.engine, time.perf_counter()
        name = type(engine).__name__
        self._enter(f"starting {name}")
        longest = max(self.sampling.max_tokens, self.data.longest(self.data.sampling))
        with started(self.trainer, self.data, (PROMPTS * RESPONSES, longest)):
            seconds = time.perf_counter() - begin
            rollout = self._sample("sampling with the weights as they are")
            yield self._started(name, seconds, rollout)
            if isinstance(engine, VLLMEngine) and self.trainer.strategy.root_device.type == "cpu":
                yield engines_products()
            yield self._texts(rollout)
            if self.data.environment is not None:
                self._enter("playing an episode")
                yield check_episode(self.data, self.prompts)
            self._enter("scoring the rollout in the trainer")
            policy = self._build()
            with self._configured_precision() as precision:
                configured = read(policy, rollout, precision).logprobs
            reading = read(policy.float(), rollout)
            hypotheses = drawn_otherwise(policy, reading, rollout, self.defaults)
            hypotheses += computed_otherwise(policy, reading, rollout)
            hypotheses += read_otherwise(policy, reading, rollout, self.tokenizer.bos_token_id)
            rounding = 0.0
            if self.engine_dtype != torch.float32:
                rounded = read(policy.to(self.engine_dtype), rollout).logprobs
                rounding = float((rounded - reading.logprobs).abs().mean())
            yield self._rounding(rounding, float((configured - reading.logprobs).abs().mean()))
            yield from self._compared("loaded", rollout, reading.logprobs, hypotheses, rounding)
            del policy
            yield from self._after_a_sync(rounding)

    def _after_a_sync(self, rounding: float) -> Iterator[Finding]:
        policy = self._build().float()
        perturb(policy)
        self._sync("syncing perturbed weights", policy)
        rollout = self._sample("sampling with the perturbed weights")
        self._enter("scoring the second rollout")
        reading = read(policy, rollout)
        hypotheses = drawn_otherwise(policy, reading, rollout, self.defaults)
        hypotheses += computed_otherwise(policy, reading, rollout)
        del policy
        old = self._build().float()
        stale = stale_weights(old, reading, rollout)
        off = float(stale[0].gaps.abs().mean())
        moved = (
            f"weights moved by {PERTURBATION:.0%}: with the old ones an engine would be {off:.2g} nats off"
        )
        yield good("perturbation", moved, stale=off)
        yield from self._compared("synced", rollout, reading.logprobs, hypotheses + stale, rounding)
        self._sync("syncing the pretrained weights back", old)

    # ------------------------------------------------------------------------------------------ doing

    def _enter(self, stage: str) -> None:
        self.stage = stage
        self.on_stage(stage)

    def _build(self) -> LanguageModel:
        builder = self.module.builders["policy"]
        assert builder is not None
        policy = builder.build()
        assert isinstance(policy, LanguageModel), "build() refuses others"
        self.module.policy = policy.to(self.trainer.strategy.root_device)
        return self.module.policy

    def _sample(self, stage: str) -> Rollout:
        self._enter(stage)
        rollout = self.data.engine.generate(self.prompts, RESPONSES, self.sampling)
        self.data.engine.rest()
        if int(rollout.token_ids.max()) >= load_config(self.data.pretrained).get_text_config().vocab_size:
            raise ConfigError(
                "the engine's tokens are not in the trainer's vocabulary: name one model for both"
            )
        return rollout

    def _sync(self, stage: str, policy: LanguageModel) -> None:
        self._enter(stage)
        self.module.policy = policy
        self.data.engine.load_weights(self.module.policy_weights(self.data.engine.weights_dtype), version=0)

    def _configured_precision(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2Strategy) and strategy.dtype is not None:
            return torch.autocast(strategy.root_device.type, getattr(torch, strategy.dtype))
        return self.trainer.precision_plugin.forward_context()

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The first prompts of the run, each with its seed."""
        prompts = self.data.read_prompts("train", self.data.train)
        return iteration_prompts(prompts, iteration=0, prompts_per_iteration=PROMPTS, seed=self.data.seed)

    @cached_property
    def sampling(self) -> SamplingConfig:
        """The run's sampling, with responses of at most `TOKENS`."""
        return SamplingConfig(min(self.data.sampling.max_tokens, TOKENS), self.data.sampling.temperature)

    @cached_property
    def tokenizer(self) -> Any:
        """The trainer's tokenizer."""
        return load_tokenizer(self.data.pretrained)

    @cached_property
    def defaults(self) -> dict[str, float]:
        """The model's own sampling settings."""
        return sampling_defaults(self.data.pretrained)

    @property
    def engine_dtype(self) -> torch.dtype:
        """The engine's dtype; where it is unknown, the default of a server."""
        return self.data.engine.weights_dtype or torch.bfloat16

    # ----------------------------------------------------------------------------------------- saying

    def _started(self, name: str, seconds: float, rollout: Rollout) -> Finding:
        tokens, cut = int(rollout.loss_mask.sum()), int(rollout.truncated.sum())
        dtype = str(self.engine_dtype).removeprefix("torch.")
        found = f"{name} in {dtype}, started in {seconds:.0f} s; {tokens} tokens in {len(rollout.prompts)} "
        found += f"responses, {cut} of them cut at {self.sampling.max_tokens}"
        return good("engine", found, seconds=seconds, tokens=tokens)

    def _texts(self, rollout: Rollout) -> Finding:
        ids = [rollout.token_ids[n][mask].tolist() for n, mask in enumerate(rollout.loss_mask)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        pairs = zip(texts, rollout.responses, strict=True)
        same = sum(ours.rstrip("\ufffd") == theirs.rstrip("\ufffd") for ours, theirs in pairs)
        found = f"{same} of {len(texts)} responses have the trainer's text for their tokens"
        fix = "--pretrained once for all, so that engine and trainer have one tokenizer"
        return fail_if(2 * same < len(texts), "tokens", found, fix, same=same, responses=len(texts))

    def _rounding(self, engine: float, trainer: float) -> Finding:
        dtype = str(self.engine_dtype).removeprefix("torch.")
        found = (
            f"the trainer's own numbers are {engine:.2g} nats from float32 in the engine's {dtype}, and "
            f"{trainer:.2g} in trainer.precision {self.trainer.precision}"
        )
        return good("rounding", found, engine=engine, trainer=trainer)

    def _compared(
        self, check: str, rollout: Rollout, ours: Tensor, hypotheses: list[Hypothesis], rounding: float
    ) -> Iterator[Finding]:
        theirs, places = rollout.sampling_logprobs[rollout.loss_mask], positions(rollout)
        gaps = theirs - ours
        if not gaps.isfinite().all():
            fix = "--data.engine.dtype float32, or bfloat16 instead of float16"
            yield Finding(check, "problem", "log-probabilities that are no numbers", fix)
            return
        summary, attribution = summarize(gaps), attribute(gaps, places, hypotheses, rounding)
        found = (
            f"|engine - trainer| {summary.mean:.2g} nats on average, p99 {summary.p99:.2g}, most "
            f"{summary.most:.2g}; {summary.beyond:.1%} of {len(gaps)} tokens above {BEYOND}"
        )
        numbers = {"mean": summary.mean, "p99": summary.p99, "max": summary.most, "beyond": summary.beyond}
        numbers |= {"rest": attribution.rest, "tolerance": attribution.tolerance}
        if not attribution.causes:
            found += f" (at most {attribution.tolerance:.2g} on average is rounding)"
        else:
            found += ": " + "; ".join(f"{each.cause}: {each.found}" for each in attribution.causes)
        fix = "; ".join(dict.fromkeys(each.fix for each in attribution.causes))
        yield Finding(check, verdict_of(attribution), found, fix, numbers)
        first, then, last = by_position(gaps, places)
        where = f"first tokens {first:.2g}, first half {then:.2g}, second half {last:.2g} nats"
        yield good(f"{check}: places", where, first=first, then=then, last=last)
        yield good(f"{check}: worst", self._worst(rollout, summary.worst, float(ours[summary.worst])))

    def _worst(self, rollout: Rollout, index: int, ours: float) -> str:
        row, column = rollout.loss_mask.nonzero()[index].tolist()
        token = self.tokenizer.decode([int(targets(rollout)[index])])
        before = self.tokenizer.decode(rollout.token_ids[row, :column].tolist())[-CONTEXT:]
        engine = float(rollout.sampling_logprobs[row, column])
        return f"{token!r} after {before!r}: engine {engine:.3f}, trainer {ours:.3f}"


def verdict_of(attribution: Attribution) -> Verdict:
    """A named cause is a problem; small gaps without one are a warning."""
    if not attribution.causes:
        return "ok"
    unexplained = {cause.cause for cause in attribution.causes} == {"unexplained"}
    return "warning" if unexplained and attribution.rest < SERIOUS else "problem"
