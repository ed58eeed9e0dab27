"""The reward of generated tasks that bring their own verifiers."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, final

from typing_extensions import override

from grpo_pl.rewards.base import Verifier, describe
from grpo_pl.rewards.pool import Outcome
from grpo_pl.rewards.quantities import Quantity, quantity
from grpo_pl.rewards.task_answers import answer_of
from grpo_pl.rewards.workers import WorkerReward
from grpo_pl.types import Prompt, Sample

log = logging.getLogger(__name__)


@final
class TaskScore(WorkerReward, Verifier):
    """1 if a generated task's own verifier takes the answer for right, else 0; for prompts of `ReasoningGym`.

    The answer is what follows `</think>`, or of that the last `<answer>...</answer>`, whose end a stop string
    may have taken. Another spelling of the gold answer is right as well: `12.0` for `12`, a list for a table.
    Where the library's verdict is lax, ours replaces it (see `task_verifiers`). A verifier that raises on an
    answer gives it 0, counted in `rewards/<name>_errors`, whatever `on_error` is.

    Args:
        partial_credit: Pay what the library pays for an answer that is partly right, in (0.05, 1), such as
            the share of correct moves or `exp(-distance)`. What it pays for any text (0.01 to 0.05), or for
            one that contains the gold answer, stays 0.
    """

    def __init__(self, *, partial_credit: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.partial_credit = partial_credit
        self._failures["errors"] = 0

    @override
    def call(self, sample: Sample) -> partial[float] | None:
        if not _is_generated(sample.prompt):
            return None
        from grpo_pl.rewards.task_verifiers import score  # imports the library

        answer = answer_of(sample.response)
        return partial(score, **_puzzle(sample.prompt), answer=answer, partial=self.partial_credit)

    @override
    def can_score(self, prompt: Prompt) -> bool:
        """False if the verifier does not take the prompt's own gold answer for right, or fails on it."""
        if not _is_generated(prompt):
            return False
        from grpo_pl.rewards.task_verifiers import takes_gold

        return self.compute([partial(takes_gold, **_puzzle(prompt))])[0].value is True

    @override
    def extract(self, response: str) -> str | None:
        answer = answer_of(response)
        number = quantity(answer)
        return str(number) if isinstance(number, Quantity) else answer or None

    @override
    def _read(self, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> list[float | None]:
        raised = [row for row, outcome in enumerate(outcomes) if outcome.error is not None]
        self._failures["errors"] += len(raised)
        if raised:
            log.warning(
                "the verifier raised on %d of %d answers, which score 0: %s (%s)",
                len(raised),
                len(samples),
                outcomes[raised[0]].error,
                describe(samples[raised[0]]),
            )
        return super()._read(samples, [Outcome(value=0.0) if o.error is not None else o for o in outcomes])


def _is_generated(prompt: Prompt) -> bool:
    return prompt.metadata.keys() >= {"task", "config", "entry"}


def _puzzle(prompt: Prompt) -> dict[str, Any]:
    return {key: prompt.metadata[key] for key in ("task", "config", "entry")} | {"gold": prompt.answer}
