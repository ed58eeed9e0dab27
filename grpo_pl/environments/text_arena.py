"""Games for one player from the textarena library."""

from collections.abc import Callable
from contextlib import redirect_stdout
from difflib import get_close_matches
from functools import partial
from io import StringIO
from typing import Any, final

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Said, Turn

_GAMES = {
    *("2048", "Blackjack", "Countdown", "Crosswords", "Cryptarithm", "FrozenLake", "GuessTheNumber"),
    *("LightsOut", "LogicPuzzle", "Mastermind", "PegJump", "RushHour", "Secretary", "Slitherlink"),
    *("Sokoban", "Sudoku", "ThreeCardMonte", "TowerOfHanoi"),
}
_REFUSED = {
    **dict.fromkeys(("Hangman", "WordLadder", "WordSearch", "Wordle"), "it downloads its words"),
    **dict.fromkeys(("GuessWho", "TwentyQuestions"), "it asks a model over the network"),
    **dict.fromkeys(("Klondike", "UltimateTexasHoldem"), "Python 3.11 cannot read its file"),
    "Bandit": "it pays more for a worse button",
    "FifteenPuzzle": "half of its puzzles cannot be solved",
    "Minesweeper": "a mine does not end it, if the move before was valid",
    "Set": "one card that is named three times counts as a set",
    **dict.fromkeys(("Sokoban-v0-medium", "Sudoku-v0-hard"), "some of its puzzles take too long to make"),
}
"""Games of textarena 0.7.4 for one player that cannot be used, and why."""


@final
class TextArena(Environment):
    """A game of the textarena library by name, such as `FrozenLake-v0` or `TowerOfHanoi-v0`.

    It pays at its end what the library pays: 1 for most games that are won, else a share of progress. A move
    without brackets gets them, as in the library. Deviation: a second invalid move in a row, which ends a
    game, pays at most 0. The library pays progress for it (a quarter for any two texts in `RushHour-v0`), and
    some games swap that number with the sentence that says what is wrong.

    Every seed plays the same puzzle in `Countdown`, `Cryptarithm`, `PegJump` and `TowerOfHanoi`.

    Args:
        game: Its name in the library; games for several players, or that need a network, are refused.
        options: Arguments of the game's class, such as `{size: 5}`.
    """

    def __init__(self, game: str, options: dict[str, Any] | None = None) -> None:
        try:
            from textarena.envs.registration import ENV_REGISTRY, make
        except ImportError as error:
            raise ImportError(
                "TextArena needs the package `textarena`: pip install 'grpo_pl[games]'"
            ) from error
        if f"{game}-raw" not in ENV_REGISTRY:
            near = ", ".join(get_close_matches(game, ENV_REGISTRY)) or "FrozenLake-v0, TowerOfHanoi-v0"
            raise ArgumentError(f"game={game}: textarena has no such game; it has, for instance, {near}")
        name = game.partition("-v0")[0]
        reason = _REFUSED.get(game) or _REFUSED.get(name)
        if reason or name not in _GAMES:
            raise ArgumentError(
                f"game={game}: {reason or 'it is no game for one player'}; choose another game"
            )
        spec = ENV_REGISTRY[f"{game}-raw"]
        try:
            # the class by reference: who loads this object imports the game, before a seed is set
            kind: Callable[..., Any] = type(make(f"{game}-raw"))
            self._make = partial(kind, **spec.kwargs | (options or {}))
            self.reset(Prompt(token_ids=[], text="", answer=""), seed=0)
        except Exception as error:
            raise ArgumentError(
                f"options={options or {}}: {error} ({type(error).__name__}); {game} takes {spec.kwargs}"
            ) from error
        del self._game

    @override
    def reset(self, prompt: Prompt, seed: int) -> Turn:
        self._game = self._make()
        with redirect_stdout(StringIO()):  # some games print
            self._game.reset(num_players=1, seed=seed)
        state = self._game.state
        state.set_invalid_move = partial(_set_invalid_move, state.set_invalid_move)
        return self._observed()

    @override
    def step(self, said: Said) -> Turn:
        move = said.text if "[" in said.text or "]" in said.text else f"[{said.text}]"
        state = self._game.state
        with redirect_stdout(StringIO()):
            try:
                done, _ = self._game.step(move)
            except ValueError:  # such as from int("²")
                state.set_invalid_move(reason="The move cannot be read.")
                done, _ = state.step()
        return Turn(reward=float(state.rewards[0]), done=True) if done else self._observed()

    def _observed(self) -> Turn:
        """What the game has said since the last move, without the move."""
        told = [text for sender, text, _ in self._game.get_observation()[1] if sender == -1]
        return Turn(messages=[{"role": "user", "content": "\n\n".join(told)}])


def _set_invalid_move(set_invalid_move: Any, *given: Any, **named: Any) -> None:
    """Tell the library what is wrong with a move: some games swap the sentence and the reward."""
    values = [*given, *named.values()]
    [reason] = [value for value in values if isinstance(value, str)]
    set_invalid_move(reason=reason, reward=min([0.0, *(value for value in values if value is not reason)]))
