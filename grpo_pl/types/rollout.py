"""The responses that the engine gives to prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.types.dialogue import Message, Outcome, Stop
from grpo_pl.types.prompt import Prompt


@dataclass(frozen=True)
class StepScore:
    """The score of one step of a response."""

    end: int
    """Where the step ends in the response, in characters (exclusive)."""
    score: float
    token: int | None = None
    """The sampled token that it ends with, from 0; None for the one that completes the last character."""


@dataclass(kw_only=True)
class Sample:
    """One response to one prompt, or one episode: everything that a reward sees."""

    prompt: Prompt
    response: str
    """What the policy said alone: the turns of an episode are joined by newlines."""
    response_tokens: int
    """The tokens that the policy sampled."""
    truncated: bool
    """True if the response was cut at the token limit, False if the model ended it."""
    token_ends: list[int] = field(default_factory=list)
    """Where each token's text ends in `response`, in characters; empty where the engine does not know."""
    tokens: tuple[Int[Tensor, "T"], Bool[Tensor, "T"]] | None = field(default=None, compare=False, repr=False)
    """Its rows of the rollout's `token_ids` and `loss_mask`, one after the other; None where they are not
    known."""
    turns: list[StepScore] = field(default_factory=list)
    """The end of each turn, and the environment's reward for it; empty where there is no environment."""
    stop: Stop | None = None
    """Why the episode ended; None where there is no environment."""
    outcome: Outcome = "score"
    """What this end does to the rewards that have a weight."""
    transcript: list[Message] = field(default_factory=list)
    """The whole conversation of an episode; empty where there is no environment."""


@dataclass(kw_only=True)
class ScoredSamples:
    """The rewards of `N` samples, one by one and summed.

    Life cycle: made by the rewards from the samples of a rollout, read by the reward stage.

    Example: `by_name={"correct": [1.0, None], "short": [0.5, 0.2]}` with the weights 1 and 0.1 has
    `total=[1.05, 0.0]` and `scored=[True, False]`.
    """

    by_name: dict[str, list[float | None]]
    """The unweighted scores of each reward; None where it abstained."""
    total: Float[Tensor, "N"]
    """The weighted sum over rewards; 0 where the sample is unscored."""
    weighted: dict[str, Float[Tensor, "N"]]
    """The weighted scores of each reward with a weight other than 0; 0 where the sample is unscored."""
    outcome: Float[Tensor, "N"] | None
    """The part of the total that is paid for whole responses; None where all rewards are process rewards."""
    steps: list[list[StepScore]]
    """The weighted scores of the steps of each sample: the other part of the total."""
    scored: Bool[Tensor, "N"]
    """False where a reward with non-zero weight abstained, so that the total is unknown."""
    failures: dict[str, dict[str, int]] = field(default_factory=dict)
    """Failures of worker processes by reward and kind, counted in samples; out of `attempts`."""
    attempts: int = 0
    """Samples that were scored: more than `N` where dynamic sampling replaced some."""


@dataclass(kw_only=True)
class Rollout:
    """An engine's `G` responses to each of `P` prompts; not changed after the engine has returned it."""

    token_ids: Int[Tensor, "N T"]
    loss_mask: Bool[Tensor, "N T"]
    """True on the tokens that the policy sampled, the end-of-sequence token included; column 0 is always
    False."""
    sampling_logprobs: Float[Tensor, "N T"]
    """The engine's log-probability of each sampled token in nats, at `temperature`; 0 elsewhere."""
    group_ids: Int[Tensor, "N"]
    prompts: list[Prompt]
    """The prompt of each sequence: length `N`, each prompt `G` times."""
    responses: list[str]
    truncated: Bool[Tensor, "N"]
    token_ends: list[list[int]]
    """Where the text of each token ends in each response, in characters."""
    policy_version: int
    """Optimizer steps that the sampling policy had taken."""
    temperature: float
    greedy: list[Sample] = field(default_factory=list)
    """The greedy response to each of the `P` prompts; empty where no estimator asks for it (ReMax does)."""
    besides: list["Rollout"] = field(default_factory=list)
    """Rollouts sampled for this one: all rounds of dynamic sampling where there were several, from which its
    groups come, and greedy responses (temperature 0)."""
    offline: bool = False
    """Whether it is older than the run: `policy_version` then counts the steps of another policy."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The costs of sampling."""
    rewards: ScoredSamples | None = None
    """The rewards of its responses, if dynamic sampling computed them."""
    candidates: Int[Tensor, "N T K"] | None = None
    """The ids of the tokens that each token was drawn from where sampling truncates, itself among them; -1
    elsewhere. None if it was drawn from the whole vocabulary."""
    top_tokens: Int[Tensor, "N T K"] | None = None
    """The ids of the sampler's K likeliest tokens at each response token; -1 elsewhere. None if not kept."""
    top_logprobs: Float[Tensor, "N T K"] | None = None
    """Their log-probabilities in the whole vocabulary, in nats, at `temperature`; 0 elsewhere."""

    turns: Int[Tensor, "N T"] | None = None
    """The number of the turn of each sampled token, from 1; 0 elsewhere. None where there is no environment,
    as for everything below."""
    episodes: Int[Tensor, "N"] | None = None
    """Rows of one episode share it: its history was forked, each sampled token is masked in one of them, and
    what describes the episode stands at each. None where every row is an episode of its own."""
    stops: list[Stop] = field(default_factory=list)
    """Why the episode of each row ended."""
    outcomes: list[Outcome] = field(default_factory=list)
    """What this end does to its rewards."""
    turn_rewards: list[list[float]] = field(default_factory=list)
    """The environment's reward of each turn of the episode of each row."""
    transcripts: list[list[Message]] = field(default_factory=list)
    """The whole conversation of the episode of each row."""

    @property
    def owners(self) -> list[int] | None:
        """The episode of each row; None if each is one."""
        return None if self.episodes is None else self.episodes.tolist()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, of prompt and response."""
        steps = torch.arange(1, self.loss_mask.shape[1] + 1)
        return (self.loss_mask * steps).amax(-1).tolist()

    @property
    def tokens_generated(self) -> int:
        """All tokens sampled for it, with those of rounds thrown away and of greedy responses."""
        rounds = [other for other in self.besides if other.temperature == self.temperature]
        sampled = self.besides if rounds else [self, *self.besides]  # its groups come from the rounds
        return sum(int(rollout.loss_mask.sum()) for rollout in sampled)

    @property
    def columns(self) -> dict[str, Any]:
        """What has an entry for each row, by name: tensors, and lists that are not empty."""
        others = ("greedy", "besides")
        named = ((name, x) for name, x in vars(self).items() if name not in others)
        return {name: x for name, x in named if isinstance(x, Tensor | list) and len(x)}

    @property
    def rows_of_episodes(self) -> list[list[int]]:
        """The rows of each episode, in the order of their first ones."""
        if self.episodes is None:
            return [[row] for row in range(len(self.prompts))]
        rows: dict[int, list[int]] = {}
        for row, episode in enumerate(self.episodes.tolist()):
            rows.setdefault(episode, []).append(row)
        return list(rows.values())

    @property
    def firsts(self) -> list[int]:
        """The first row of each episode, for what stands at each of its rows."""
        return [rows[0] for rows in self.rows_of_episodes]

    @property
    def samples(self) -> list[Sample]:
        """The responses as rewards see them: one for each episode."""
        lengths, truncated = self.loss_mask.sum(-1).tolist(), self.truncated.tolist()
        return [self._sample(rows, lengths, truncated) for rows in self.rows_of_episodes]

    def _sample(self, rows: list[int], lengths: list[int], truncated: list[bool]) -> Sample:
        first = rows[0]
        response, token_ends = joined([(self.responses[row], self.token_ends[row]) for row in rows])
        token_ids, loss_mask = (torch.cat([x[row] for row in rows]) for x in (self.token_ids, self.loss_mask))
        turns: list[StepScore] = []
        if self.turns is not None:
            numbers = torch.cat([self.turns[row] for row in rows])[loss_mask].tolist()
            turns = turn_scores(numbers, token_ends, self.turn_rewards[first])
        return Sample(
            prompt=self.prompts[first],
            response=response,
            response_tokens=sum(lengths[row] for row in rows),
            truncated=truncated[first],
            token_ends=token_ends,
            tokens=(token_ids, loss_mask),
            turns=turns,
            stop=self.stops[first] if self.stops else None,
            outcome=self.outcomes[first] if self.outcomes else "score",
            transcript=self.transcripts[first] if self.transcripts else [],
        )


def joined(parts: Sequence[tuple[str, list[int]]]) -> tuple[str, list[int]]:
    """Texts with a newline between them, and where their tokens end in the whole."""
    text, ends = parts[0]
    for more, of_more in parts[1:]:
        ends = [*ends, *(len(text) + 1 + end for end in of_more)]
        text += f"\n{more}"
    return text, ends


def turn_scores(turns: Sequence[int], token_ends: Sequence[int], rewards: Sequence[float]) -> list[StepScore]:
    """The end of each turn, from the turn of each sampled token, and its reward."""
    lasts = [i for i, turn in enumerate(turns) if i + 1 == len(turns) or turns[i + 1] != turn]
    ends = [token_ends[i] if token_ends else 0 for i in lasts]
    return [StepScore(end, score, i) for end, score, i in zip(ends, rewards, lasts, strict=True)]
