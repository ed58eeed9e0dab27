"""An engine that plays episodes: the turns by another engine, what is between them by an environment."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.environments.sessions import Sessions
from grpo_pl.models.loading import eos_token_ids, load_tokenizer
from grpo_pl.prompts.chat import ChatFormat
from grpo_pl.prompts.dialogue import ChatDialogue
from grpo_pl.rollout.assembly import EpisodeRow, Response, assemble_rollout
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig, SamplingEngine
from grpo_pl.rollout.episodes import Driver, Episode
from grpo_pl.rollout.limits import Episodes
from grpo_pl.rollout.overlapped import OverlappedEngine
from grpo_pl.rollout.replay import ReplayEngine
from grpo_pl.rollout.wrapper import EngineWrapper
from grpo_pl.system.refusal import ConfigError, name_of
from grpo_pl.types import STOPS, Prompt, Rollout
from grpo_pl.types.rollout import joined

log = logging.getLogger(__name__)
NO_CHANCE = 8
"""So many episodes do not all fail by chance: the environment is broken, and the run ends."""


@final
class EnvironmentEngine(EngineWrapper):
    """Answers each prompt with a whole episode; everything around it sees a rollout like any other."""

    engine: SamplingEngine

    def __init__(
        self,
        engine: SamplingEngine,
        environment: Environment,
        limits: Episodes,
        format: ChatFormat,
        max_prompt_tokens: int,
    ) -> None:
        super().__init__(engine)
        self.environment, self.limits = environment, limits
        self.format, self.max_prompt_tokens = format, max_prompt_tokens
        self._driver: Driver | None = None

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        self.open()
        super().start(max_sequence_tokens=max_sequence_tokens, max_sequences=max_sequences, device=device)

    def open(self) -> None:
        """Start what plays, beside the engine; refuses a chat template that does not fit."""
        limits = self.limits
        dialogue = dialogue_of(self.pretrained, self.environment, limits, self.format)
        sessions = Sessions(
            self.environment,
            timeout_s=limits.timeout_s,
            memory_gib=limits.memory_gib,
            processes=limits.processes,
        )
        self._driver = Driver(self.engine, sessions, dialogue, limits, self.max_prompt_tokens)

    def close(self) -> None:
        """End the processes of the episodes."""
        if self._driver is not None:
            self._driver.sessions.close()
            self._driver = None

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        episodes = self.play(prompts, group_size, sampling)
        failed = [episode.failure for episode in episodes if episode.failure]
        if len(failed) == len(episodes) >= NO_CHANCE:
            raise ConfigError(f"data.environment: all {len(failed)} episodes failed; mend it: {failed[0]}")
        if failed:
            log.warning("! %d of %d episodes failed; one: %s", len(failed), len(episodes), failed[0])
        rollout = assemble_episodes(episodes, group_size, self.limits, self.engine.version, sampling)
        rollout.metrics |= self.engine.costs()
        return rollout

    def play(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> list[Episode]:
        """`group_size` episodes of each prompt, group after group."""
        assert self._driver is not None, "start() comes first"
        return self._driver.play(prompts, group_size, sampling)

    @override
    def shutdown(self) -> None:
        self.close()
        super().shutdown()


def dialogue_of(
    pretrained: str, environment: Environment, limits: Episodes, format: ChatFormat
) -> ChatDialogue:
    """How a model's chat template writes episodes; refuses one that does not fit."""
    eos = eos_token_ids(pretrained)
    tokenizer, calls, tools = load_tokenizer(pretrained), limits.calls_format, environment.tools
    dialogue = ChatDialogue(tokenizer, format, calls, tools, eos)
    if dialogue.changes and limits.history == "refuse":
        raise ConfigError(
            f"the chat template changes what stands in earlier turns ({'; '.join(dialogue.changes)}): "
            "set data.episodes.history to keep (rows as sampled) or fork (a new row where it does)"
        )
    if limits.history == "fork" and not dialogue.shows_results:
        raise ConfigError(
            "the chat template shows no result of a tool behind a call in plain text, as a new row has it: "
            "set data.episodes.history to keep"
        )
    return dialogue


def with_environment(engine: RolloutEngine, **around: Any) -> RolloutEngine:
    """The engine, playing episodes; one that samples ahead plays them in its own process.

    The files of `ReplayEngine` hold whole episodes: there is nothing to play.
    """
    if isinstance(engine, ReplayEngine):
        return engine
    if isinstance(engine, OverlappedEngine):
        engine.engine = with_environment(engine.engine, **around)
        return engine
    if not isinstance(engine, SamplingEngine):
        raise ConfigError(
            f"data.environment needs an engine that samples, and {name_of(engine)} does not: take "
            "VLLMEngine, or set data.environment to null"
        )
    if engine.ranks > 1:
        raise ConfigError(
            f"data.environment: {name_of(engine)} is one engine of {engine.ranks} ranks, whose environments "
            "would not answer at the same time: set tensor_parallel_size to 1"
        )
    return EnvironmentEngine(engine, **around)


def assemble_episodes(
    episodes: Sequence[Episode], group_size: int, limits: Episodes, version: int, sampling: SamplingConfig
) -> Rollout:
    """The rollout of episodes, group after group."""
    rows = [(episode, number) for episode in episodes for number in range(len(episode.rows))]
    rollout = assemble_rollout(
        [episode.prompt for episode in episodes[::group_size]],
        [response_of(episode, number, limits, sampling) for episode, number in rows],
        policy_version=version,
        temperature=sampling.temperature,
    )
    # the environment may have opened each episode with words of its own
    prompts, metrics = [episode.prompt for episode, _ in rows], episode_metrics(episodes)
    return replace(rollout, prompts=prompts, metrics=rollout.metrics | metrics)


def response_of(episode: Episode, number: int, limits: Episodes, sampling: SamplingConfig) -> Response:
    """One sequence of an episode: what was sampled in it, and between it what the environment said."""
    row, stop = episode.rows[number], episode.stop or "done"
    said = [episode.said[turn - 1] for turn in sorted(set(row.turns) - {0})]
    text, ends = joined(said)
    top = list(zip(*row.top, strict=True))
    return Response(
        token_ids=[token for token, turn in zip(row.token_ids, row.turns, strict=True) if turn],
        logprobs=row.logprobs,
        text=text,
        truncated=stop != "done",
        token_ends=ends,
        candidates=row.candidates if sampling.truncates else None,
        top=(torch.stack(top[0]), torch.stack(top[1])) if top else None,
        row=EpisodeRow(
            token_ids=row.whole,
            turns=[0] * len(row.opening) + row.turns,
            episode=episode.key,
            stop=stop,
            outcome=limits.outcome_of[stop],
            turn_rewards=episode.rewards,
            transcript=episode.prompt.messages + episode.transcript,
        ),
    )


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over episodes, and the share of them that each end has."""
    count, ended = len(episodes), Counter(episode.stop for episode in episodes)
    observed = sum(len(row.turns) - sum(turn > 0 for turn in row.turns) for e in episodes for row in e.rows)
    return {
        "episodes/turns": sum(len(episode.said) for episode in episodes) / count,
        "episodes/calls": sum(episode.calls for episode in episodes) / count,
        "episodes/mistakes": sum(episode.mistakes for episode in episodes) / count,
        "episodes/observed_tokens": observed / count,
        "episodes/reward": sum(sum(episode.rewards) for episode in episodes) / count,
    } | {f"episodes/ended_{stop}": ended[stop] / count for stop in STOPS}
