"""A game of several turns."""

import random
import re
from typing import final

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.system.refusal import check_at_least
from grpo_pl.types import Prompt, Said, Turn


@final
class GuessTheNumber(Environment):
    """A number is guessed, with a hint after each guess; the right one pays 1.

    Args:
        low: The lowest number.
        high: The highest.
        guesses: How many there are; the last one ends the game.
    """

    def __init__(self, low: int = 1, high: int = 100, guesses: int = 7) -> None:
        check_at_least(low, high=high)
        check_at_least(1, guesses=guesses)
        self.low, self.high, self.guesses = low, high, guesses

    @override
    def reset(self, prompt: Prompt, seed: int) -> Turn:
        self.number, self.left = random.Random(seed).randint(self.low, self.high), self.guesses
        return self._say(f"I think of a number from {self.low} to {self.high}. Which one is it?")

    @override
    def step(self, said: Said) -> Turn:
        self.left -= 1
        found = re.findall(r"-?\d+", said.text)
        guess = int(found[-1][:30]) if found else None  # Python reads no number of 5,000 digits
        if guess == self.number or not self.left:
            return Turn(reward=float(guess == self.number), done=True)
        if guess is None:
            return self._say("Say a number.")
        return self._say("It is higher." if guess < self.number else "It is lower.")

    def _say(self, text: str) -> Turn:
        return Turn(messages=[{"role": "user", "content": text}])
