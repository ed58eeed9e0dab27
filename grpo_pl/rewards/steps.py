"""The steps of a response, and a rule that scores them."""

import re
from collections.abc import Sequence
from typing import Any, final

from typing_extensions import override

from grpo_pl.rewards.base import ProcessReward
from grpo_pl.rewards.patterns import compiled
from grpo_pl.types import Sample, StepScore


def step_ends(response: str, separator: re.Pattern[str]) -> list[int]:
    r"""Where each step of a response ends, in characters.

    A step ends after its separator, the last step at the end of the response. Leading white space belongs to
    the first step; white space between separators to the next step, and to no step at the end.

    Example: `"\na\n\nb"` with the separator `\n+` ends its steps at 4 and 5.
    """
    ends, begin = [], 0
    for end in [*(match.end() for match in separator.finditer(response)), len(response)]:
        if response[begin:end].strip():
            ends.append(end)
            begin = end
    return ends


@final
class StepPattern(ProcessReward):
    r"""1 for each step that has a match of a regular expression, else 0.

    Example: `=` counts the lines with an equation.

    Args:
        pattern: The regular expression, searched in each step without the white space around it.
        steps: Regular expression of the separator between steps; an empty match splits as well, so that
            `(?=Step [0-9])` begins a step at each `Step 1`.
    """

    def __init__(self, pattern: str, steps: str = r"\n+", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pattern, self._separator = compiled("pattern", pattern), compiled("steps", steps)

    @override
    def score_steps(self, samples: Sequence[Sample]) -> list[list[StepScore]]:
        return [self._score(sample.response) for sample in samples]

    def _score(self, response: str) -> list[StepScore]:
        ends = step_ends(response, self._separator)
        steps = [response[begin:end].strip() for begin, end in zip([0, *ends], ends, strict=False)]
        return [
            StepScore(end, float(self._pattern.search(step) is not None))
            for end, step in zip(ends, steps, strict=True)
        ]
