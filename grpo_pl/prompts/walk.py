"""A place in an endless stream of rows: one seeded permutation of them after the other."""

import math
from collections.abc import Sequence
from functools import lru_cache

from grpo_pl.functional import derive_seed, permutation

PHASES = 1 << 20


class Walk:
    """Draws rows in the order of the stream; what is passed over comes again in the next permutation.

    A row with chance c is drawn at the turns t (the number of the permutation) in which
    `floor((t + 1) c + phase)` exceeds `floor(t c + phase)`, with a phase in [0, 1) of the row's own: evenly
    spaced, without a state of its own.

    Args:
        size: The number of rows.
        seed: Seed of the run.
        name: Tells this stream from others of the run.
    """

    place: int
    """Positions of the stream that lie behind."""

    def __init__(self, size: int, seed: int, name: str) -> None:
        self.size, self.seed, self.name, self.place = size, seed, name, 0

    def take(
        self, count: int, chances: Sequence[float] | None = None, without: set[int] | None = None
    ) -> list[int]:
        """The next rows, drawn with their chances (1 by default).

        None of `without` is drawn and none twice: what is drawn is added to it. Once no other row is left,
        all may come again, and so they may if no chance is above 0.
        """
        if chances is None or not any(chances):
            chances = [1.0] * self.size
        possible = self.size - chances.count(0.0)
        left = 0 if without is None else possible - sum(chances[row] > 0 for row in without)
        rows: list[int] = []
        while len(rows) < count:
            turn, first = divmod(self.place, self.size)
            for row in order(self.size, derive_seed(self.seed, self.name, turn))[first:]:
                if without is not None and not left:
                    without.clear()
                    left = possible
                self.place += 1
                if (without is None or row not in without) and self._due(row, turn, chances[row]):
                    rows.append(row)
                    if without is not None:
                        without.add(row)
                        left -= 1
                if len(rows) == count:
                    break
        return rows

    def _due(self, row: int, turn: int, chance: float) -> bool:
        if chance in (0.0, 1.0):
            return chance == 1.0
        phase = derive_seed(self.seed, self.name, "phase", row) % PHASES / PHASES
        return math.floor((turn + 1) * chance + phase) > math.floor(turn * chance + phase)


@lru_cache(maxsize=4)
def order(size: int, seed: int) -> list[int]:
    """The rows of one permutation."""
    return permutation(size, seed)
