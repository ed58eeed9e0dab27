"""Plays episodes: the engine samples the policy's turns, the environment says what stands between them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from grpo_pl.environments.sessions import Failure, Sessions
from grpo_pl.functional import derive_seed
from grpo_pl.prompts.dialogue import ChatDialogue
from grpo_pl.rollout.assembly import Response
from grpo_pl.rollout.engine import Request, SamplingConfig, SamplingEngine
from grpo_pl.rollout.limits import Episodes
from grpo_pl.system.refusal import ConfigError, name_of
from grpo_pl.types import Message, Prompt, Stop, Turn

PATIENCE_S = 0.5
"""The longest wait for the environment while the engine has nothing to sample."""


@dataclass
class Row:
    """One sequence of an episode, as it grows."""

    opening: list[int]
    """The tokens before the first turn."""
    token_ids: list[int] = field(default_factory=list)
    """All tokens after the opening."""
    turns: list[int] = field(default_factory=list)
    """The number of the turn in which each was sampled, from 1; 0 for what the environment said."""
    logprobs: list[float] = field(default_factory=list)
    """Of the sampled tokens alone, here and below."""
    candidates: list[Tensor] = field(default_factory=list)
    top: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def whole(self) -> list[int]:
        """Everything that the next turn is sampled after."""
        return self.opening + self.token_ids

    def cut(self) -> None:
        """Take out what stands behind the last sampled token."""
        end = max(i + 1 for i, turn in enumerate(self.turns) if turn)
        del self.token_ids[end:], self.turns[end:]

    def observe(self, token_ids: list[int]) -> None:
        """Append what the environment says, which nothing was drawn for."""
        self.token_ids += token_ids
        self.turns += [0] * len(token_ids)


@dataclass
class Episode:
    """One episode, as it is played."""

    key: int
    prompt: Prompt
    seed: int
    began: float = 0.0
    rows: list[Row] = field(default_factory=list)
    said: list[tuple[str, list[int]]] = field(default_factory=list)
    """The text of each turn, and where the text of each of its tokens ends in it."""
    asked: list[Message] = field(default_factory=list)
    """What the prompt has asked, for the chat template."""
    transcript: list[Message] = field(default_factory=list)
    """All that was said since."""
    rewards: list[float] = field(default_factory=list)
    """The environment's, of each turn."""
    sampled: int = 0
    """Tokens of all turns."""
    calls: int = 0
    mistakes: int = 0
    stop: Stop | None = None
    failure: str = ""
    """What failed, in words."""

    def drop_unanswered(self) -> None:
        """Take out what stands behind the last turn, which the policy has no room to answer."""
        if not any(self.rows[-1].turns):
            self.rows.pop()
        else:
            self.rows[-1].cut()


class Driver:
    """Plays the episodes of one rollout.

    No episode waits for another: while the environment answers one, the engine samples the others. Turn `t`
    of response `g` is sampled with `derive_seed(derive_seed(prompt.seed, g), t)`, the first with the seed of
    an answer, so that an episode depends neither on those beside it nor on how long its tools take (in
    float32; elsewhere up to rounding).

    The invariant of exact tokens: each request begins with the whole row before it, as it was sampled.
    """

    def __init__(
        self,
        engine: SamplingEngine,
        sessions: Sessions,
        dialogue: ChatDialogue,
        limits: Episodes,
        max_prompt_tokens: int,
    ) -> None:
        self.engine, self.sessions, self.dialogue, self.limits = engine, sessions, dialogue, limits
        self.max_prompt_tokens = max_prompt_tokens

    def play(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> list[Episode]:
        """`group_size` episodes of each prompt, group after group."""
        pairs = [(prompt, g) for prompt in prompts for g in range(group_size)]
        episodes = [
            Episode(key, prompt, derive_seed(prompt.seed, g)) for key, (prompt, g) in enumerate(pairs)
        ]
        self._sampling, self._asked, self._open = sampling, set[int](), {e.key: e for e in episodes}
        self._openings: dict[int, Turn] = {}
        with self.engine.undisturbed(), self._closed_sessions():
            for episode in episodes:
                self.sessions.reset(episode.key, episode.prompt, episode.prompt.seed)
            while self._open:
                for key, response in self.engine.step() if self._asked else ():
                    self._asked.discard(key)
                    self._take_turn(self._open[key], response)
                for key, answer in self.sessions.answers(0.0 if self._asked else PATIENCE_S):
                    self._take_answer(self._open[key], answer)
        return episodes

    @contextmanager
    def _closed_sessions(self) -> Iterator[None]:
        """Whatever happens in the body, no episode is open after it."""
        try:
            yield
        finally:
            for key in self._open:
                self.sessions.end(key)

    # ------------------------------------------------------------------------------------------ the policy

    def _ask(self, episode: Episode) -> None:
        """Have the engine sample the next turn, unless a limit is reached."""
        row, turn = episode.rows[-1], len(episode.said)
        room, limit = self._room(episode)
        if room < 1:
            return self._end(episode, limit)
        if turn and time.monotonic() - episode.began > self.limits.seconds:
            return self._end(episode, "seconds")
        sampling = replace(self._sampling, max_tokens=room if episode.stop is None else 1)
        seed = episode.seed if turn == 0 else derive_seed(episode.seed, turn)
        self.engine.submit(Request(key=episode.key, token_ids=row.whole, seed=seed, sampling=sampling))
        self._asked.add(episode.key)
        return None

    def _room(self, episode: Episode) -> tuple[int, Stop]:
        """The most tokens of the next turn, and the limit that it would reach with them."""
        tokens = len(episode.rows[-1].whole) - len(episode.rows[0].opening)
        return self.limits.room(episode.sampled, tokens, self._sampling.max_tokens)

    def _take_turn(self, episode: Episode, response: Response) -> None:
        """Append what was sampled, and show it to the environment if it is whole."""
        row, (_, limit) = episode.rows[-1], self._room(episode)
        episode.said.append((response.text, response.token_ends))
        episode.rewards.append(0.0)
        episode.sampled += len(response.token_ids)
        row.token_ids += response.token_ids
        row.turns += [len(episode.said)] * len(response.token_ids)
        row.logprobs += response.logprobs
        row.candidates += response.candidates or []
        row.top += [] if response.top is None else list(zip(*response.top, strict=True))
        said = self.dialogue.read(response.token_ids, episode.prompt.opened)
        episode.calls += len(said.calls)
        episode.mistakes += len(said.mistakes)
        whole = episode.prompt.opened + said.raw
        episode.transcript.append({"role": "assistant", "content": whole})
        if episode.stop is not None:  # the environment could not open it
            self._end(episode, episode.stop)
        elif response.truncated:
            self._end(episode, limit)
        elif episode.calls > self.limits.calls:
            self._end(episode, "calls")
        else:
            self.sessions.step(episode.key, said)

    # ------------------------------------------------------------------------------------- the environment

    def _take_answer(self, episode: Episode, answer: Turn | Failure) -> None:
        if not episode.rows:
            return self._begin(episode, answer)
        if isinstance(answer, Failure):
            episode.failure = answer.message
            return self._end(episode, answer.kind)
        episode.rewards[-1] = answer.reward
        episode.transcript += answer.messages
        if answer.done:
            return self._end(episode, "done")
        if len(episode.said) == self.limits.turns:
            return self._end(episode, "turns")
        self._observe(episode, answer.messages)
        return self._ask(episode)

    def _observe(self, episode: Episode, messages: Sequence[Message]) -> None:
        """Append what the environment says to the row, or begin another one with the conversation so far.

        Another one only where the template has changed what stands in the row.
        """
        row = episode.rows[-1]
        said = self.dialogue.between(row.token_ids, messages)
        if self.limits.history == "fork" and self.dialogue.changes:
            rendered = self.dialogue.open([*episode.asked, *episode.transcript])
            if self.dialogue.decode(rendered) != self.dialogue.decode(row.whole + said):
                episode.rows.append(Row(rendered))
                return
        row.observe(said)

    def _begin(self, episode: Episode, opening: Turn | Failure) -> None:
        """Open the episode; one that the environment could not open ends after its first turn."""
        episode.began, prompt = time.monotonic(), episode.prompt
        episode.asked = self.dialogue.asked(prompt)
        if isinstance(opening, Failure):
            episode.stop, episode.failure = opening.kind, opening.message
        elif opening != self._openings.setdefault(id(prompt), opening):
            raise ConfigError(
                f"{name_of(self.sessions.environment)}.reset opens the responses to one prompt differently, "
                f"so that their rewards do not compare: draw from nothing but its seed (first as "
                f"{self._openings[id(prompt)].messages!r:.200}, then as {opening.messages!r:.200})"
            )
        elif opening.messages:
            token_ids = self.dialogue.open(opening.messages)
            if len(token_ids) > self.max_prompt_tokens:
                raise ConfigError(
                    f"data.max_prompt_tokens={self.max_prompt_tokens}: the environment opens an episode with "
                    f"{len(token_ids)} tokens: raise it"
                )
            episode.asked, text = opening.messages, str(opening.messages[-1]["content"])
            opened = replace(prompt, token_ids=token_ids, messages=opening.messages, text=text)
            episode.prompt = replace(opened, asked=prompt.token_ids)
        episode.rows.append(Row(episode.prompt.token_ids))
        self._ask(episode)

    def _end(self, episode: Episode, stop: Stop) -> None:
        episode.stop = stop
        episode.drop_unanswered()
        del self._open[episode.key]
        self.sessions.end(episode.key)
