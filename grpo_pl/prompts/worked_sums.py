"""Sums with solutions as a hasty writer leaves them: what a model is pretrained on that is to learn by RL."""

import random
from typing import Literal, final

from typing_extensions import override

from grpo_pl.functional import derive_seed
from grpo_pl.prompts.procedural import Arithmetic
from grpo_pl.prompts.sources import PromptSource, Question
from grpo_pl.system.refusal import ArgumentError

FORGETS_WHEN_DIRECT = 0.9
"""The share of solutions without steps in which no carry is kept."""
FORGETS_WHEN_STEPWISE = tuple(0.45 + 0.05 * digit for digit in range(10))
"""The probability with which a step forgets its carry, by the digit of the second number in its column."""


@final
class WorkedSums(PromptSource):
    r"""Sums of two numbers, each with a solution that a hasty writer would leave, and a right one.

    Metadata holds `responses`, a list with one solution that is often wrong, and `solution`, which is right:
    a line for each column, from the right, with its carry as a third number, and the sum behind `#`. For
    583 + 947 that is `"3+7=10\n8+4+1=13\n5+9+1=15\n#1530"`. A hasty solution is the last line alone
    (`direct` of them), nine times in ten without any carry but the first digit's (`#1420`), or has steps, of
    which each forgets its carry with a probability of 0.45 to 0.9, the larger the digit to be added. So a
    model that has learnt to write like that knows how to add, is right greedily where nothing carries or
    digits are small, and finds the other answers when it is sampled often.

    The problems are those of `Arithmetic`, split in the same way.

    Args:
        digits: Digits of both numbers.
        split: One of two disjoint parts.
        size: Rows of the split; null for all, for `train` at most 10,000.
        held_out: Problems set aside for `val`; the same number in both splits keeps them disjoint.
        seed: Seed of problems and solutions; the same number in both splits keeps them disjoint.
        direct: Share of hasty solutions without steps.
    """

    def __init__(
        self,
        digits: int = 3,
        split: Literal["train", "val"] = "train",
        size: int | None = None,
        held_out: int = 1000,
        seed: int = 0,
        direct: float = 0.3,
    ) -> None:
        if not 0 <= direct <= 1:
            raise ArgumentError(f"direct={direct}: expected a share from 0 to 1")
        self._sums = Arithmetic(digits, "+", split, size, held_out, seed, template="{a}{operator}{b}")
        self._seed, self._direct = seed, direct

    @override
    def __len__(self) -> int:
        return len(self._sums)

    @override
    def __getitem__(self, index: int) -> Question:
        question = self._sums[index]
        a, b = question.text.split("+")
        random_of_row = random.Random(derive_seed(self._seed, "solution", question.text))
        hasty = hasty_solution(a, b, self._direct, random_of_row)
        question.metadata = {"responses": [hasty], "solution": solution(a, b)}
        return question


def hasty_solution(a: str, b: str, direct: float, draw: random.Random) -> str:
    """A solution of `a + b`, equally long numbers, that forgets carries as `WorkedSums` says."""
    if draw.random() < direct:
        return solution(a, b, [draw.random() < FORGETS_WHEN_DIRECT] * len(a)).rpartition("\n")[2]
    return solution(a, b, [draw.random() < FORGETS_WHEN_STEPWISE[int(digit)] for digit in reversed(b)])


def solution(a: str, b: str, forgotten: list[bool] | None = None) -> str:
    """A line for each column, from the right, then the sum behind `#`.

    Args:
        a: A number.
        b: Another with as many digits.
        forgotten: For each column whether it forgets the carry of the one to its right; null for none.
    """
    lines, digits, carry = [], "", 0
    for column, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=True)):
        if forgotten is not None and forgotten[column]:
            carry = 0
        total = int(x) + int(y) + carry
        lines.append(f"{x}+{y}{f'+{carry}' if carry else ''}={total}")
        digits, carry = f"{total % 10}{digits}", total // 10
    return "\n".join([*lines, f"#{carry or ''}{digits}"])
