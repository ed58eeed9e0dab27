"""The contract of an environment: what answers the policy between its turns."""

from abc import ABC, abstractmethod
from typing import Any

from grpo_pl.types import Prompt, Said, Turn


class Environment(ABC):
    """Plays one episode with the policy: one instance an episode, text only, never tokens.

    The object of the config is a prototype. Each episode gets a copy of it in a process of its own, which may
    hang, crash or run out of memory without harm to others; what the object keeps stays there from turn to
    turn.

    Example, a game of at most 7 turns with a reward at its end:

        class GuessTheNumber(Environment):
            def reset(self, prompt: Prompt, seed: int) -> Turn:
                self.number = random.Random(seed).randint(1, 100)
                return Turn()

            def step(self, said: Said) -> Turn:
                guess = int(said.text)
                if guess == self.number:
                    return Turn(reward=1.0, done=True)
                hint = "Higher." if guess < self.number else "Lower."
                return Turn(messages=[{"role": "user", "content": hint}])
    """

    def reset(self, prompt: Prompt, seed: int) -> Turn:  # noqa: ARG002 - for those that override it
        """The opening of an episode: a `Turn` without messages leaves the prompt as it is.

        All responses to a prompt are asked with the same `seed` and must open alike: their rewards would not
        compare, and the run ends.
        """
        return Turn()

    @abstractmethod
    def step(self, said: Said) -> Turn:
        """The answer to what the policy has said.

        An exception is a failure of the environment: the episode ends with `error`.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Free what the episode holds; its process ends with it in any case."""

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools that the policy may call, as chat templates take them (JSON schema); none for most."""
        return []
