"""A game of OpenEnv. Where the package is not installed, what it is made of has the same shape."""

from typing import Any

from pydantic import BaseModel

try:
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State
except ModuleNotFoundError:

    class Action(BaseModel):
        metadata: dict[str, Any] = {}

    class Observation(BaseModel):
        done: bool = False
        reward: bool | int | float | None = None
        metadata: dict[str, Any] = {}

    class State(BaseModel):
        step_count: int = 0

    class Environment:
        def close(self) -> None:
            pass


class Guess(Action):
    guess: str


class Hint(Observation):
    hint: str


class Number(Environment):
    def __init__(self, high: int = 9) -> None:
        super().__init__()
        self.high = high

    def reset(self, seed: int | None = None, **_: Any) -> Hint:
        self.number = (seed or 0) % self.high
        return Hint(hint=f"Below {self.high}.")

    def step(self, action: Guess, **_: Any) -> Hint:
        guess = int(action.guess)
        if guess == self.number:
            return Hint(hint="Right.", reward=True, done=True)
        return Hint(hint="Higher." if guess < self.number else "Lower.")

    @property
    def state(self) -> State:
        return State()
