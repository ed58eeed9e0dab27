"""What policy and environment say to each other in an episode: text, never tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Message = dict[str, Any]
"""One message of a chat: `role` and `content`, and for a tool's the `name` of the tool."""

Stop = Literal[
    "done",
    "turns",
    "sampled_tokens",
    "tokens",
    "turn_tokens",
    "calls",
    "seconds",
    "timeout",
    "crash",
    "error",
]
"""Why an episode ended: the environment said so, a limit was reached, or the environment failed."""
STOPS: tuple[Stop, ...] = get_args(Stop)
Outcome = Literal["score", "zero", "abstain"]
"""What an end does to the rewards of its episode: they count as they stand, are 0, or are unknown."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call that the policy has written. Example: `Call(name="add", arguments={"a": 2, "b": 3})`."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the policy has said in one turn, read from the tokens that it sampled."""

    text: str
    """Everything it wrote, without its thinking and without its calls."""
    thinking: str = ""
    attempts: tuple[Call | str, ...] = ()
    """Its calls in their order; in the place of one that could not be read, a sentence about it."""
    raw: str = ""
    """The whole turn as it was written, without the token that ended it."""

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls that could be read."""
        return tuple(attempt for attempt in self.attempts if isinstance(attempt, Call))

    @property
    def mistakes(self) -> tuple[str, ...]:
        """A sentence for each call that could not be read."""
        return tuple(attempt for attempt in self.attempts if isinstance(attempt, str))


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the environment says.

    Example: `Turn(messages=[{"role": "user", "content": "Too high."}])`, and at the end
    `Turn(reward=1.0, done=True)`.
    """

    messages: list[Message] = field(default_factory=list)
    """The user's or the tools'; the policy reads them before its next turn. Empty from `reset`: the prompt as
    it is."""
    reward: float = 0.0
    """For what the policy has just said; paid on the last token of it."""
    done: bool = False
    """Whether the episode is over."""


def in_words(messages: Sequence[Message]) -> str:
    """A conversation for people to read: each message behind who speaks."""
    return "\n\n".join(
        f"{message.get('name') or message['role']}: {message['content']}" for message in messages
    )
