"""How long an episode may go on, and what its end means for its rewards."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from grpo_pl.prompts.calls import CallFormat, Hermes
from grpo_pl.system.refusal import ArgumentError, check_at_least
from grpo_pl.types import STOPS, Outcome, Stop

FAILURES: tuple[Stop, ...] = ("timeout", "crash", "error")
"""The ends by a failure of the environment."""


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """The limits of an episode, and what each of its ends means for its rewards.

    Ends are `done` (the environment's), one of the limits below by its name, `turn_tokens` (a turn that
    `data.sampling.max_tokens` cut: the environment does not see half a turn), and the failures of the
    environment: `timeout`, `crash`, `error`.

    Args:
        turns: Of the policy.
        tokens: After the prompt, sampled or not. What would exceed it is not read.
        sampled_tokens: Of all turns; null for no limit but `tokens`.
        calls: Tool calls of all turns.
        seconds: Wall clock of an episode, beyond which no turn is begun.
        outcomes: By the name of an end, what it does to the rewards of its episode: `score` leaves them as
            they stand, `zero` makes them 0, `abstain` leaves the episode unscored. Ends that are not named
            keep the default: `abstain` for failures, `score` for the rest.
        history: What is done where the chat template changes what stands in earlier turns (many drop
            thinking): `keep` leaves the sequence as it was sampled, `fork` begins a new sequence behind
            each turn where it does, as the template renders the conversation then, `refuse` does not start.
        call_format: How the policy writes tool calls: `Hermes`, `Llama`, or `Tag`, which needs no chat
            template that shows tools; null for `Hermes`.
        timeout_s: Wall-clock limit of one call of the environment, in seconds; then its process is killed.
        memory_gib: Memory of an episode's process beside what the environment's imports need.
        processes: Episodes that are played at once, on each rank.
    """

    turns: int = 8
    tokens: int = 1024
    sampled_tokens: int | None = None
    calls: int = 64
    seconds: float = 600.0
    outcomes: dict[Stop, Outcome] = field(default_factory=dict)
    history: Literal["refuse", "keep", "fork"] = "refuse"
    call_format: CallFormat | None = None
    timeout_s: float = 10.0
    memory_gib: float = 1.0
    processes: int = 64

    def __post_init__(self) -> None:
        check_at_least(1, turns=self.turns, tokens=self.tokens, processes=self.processes)
        check_at_least(0, calls=self.calls)
        if self.sampled_tokens is not None:
            check_at_least(1, sampled_tokens=self.sampled_tokens)
        if unknown := [end for end in self.outcomes if end not in STOPS]:
            raise ArgumentError(f"outcomes.{unknown[0]}: no episode ends so, but by {', '.join(STOPS)}")
        for key in ("seconds", "timeout_s", "memory_gib"):
            if not 0 < getattr(self, key) < math.inf:
                raise ArgumentError(f"{key}={getattr(self, key)}: expected a finite number above 0")

    @property
    def calls_format(self) -> CallFormat:
        """How the policy writes tool calls."""
        return self.call_format or Hermes()

    @property
    def outcome_of(self) -> Mapping[Stop, Outcome]:
        """The outcome of every end."""
        default: dict[Stop, Outcome] = {stop: "abstain" if stop in FAILURES else "score" for stop in STOPS}
        return default | self.outcomes

    def room(self, sampled: int, tokens: int, of_turn: int) -> tuple[int, Stop]:
        """The most tokens of the next turn, and the limit that it would reach with them.

        Args:
            sampled: Tokens sampled so far.
            tokens: Tokens after the prompt so far.
            of_turn: The most tokens of any turn.
        """
        rooms: list[tuple[int, Stop]] = [(of_turn, "turn_tokens"), (self.tokens - tokens, "tokens")]
        if self.sampled_tokens is not None:
            rooms.append((self.sampled_tokens - sampled, "sampled_tokens"))
        return min(rooms)
