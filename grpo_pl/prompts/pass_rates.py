"""How often each prompt was answered right in a run."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.system.atomic_files import write_atomically
from grpo_pl.types import Prompt, Rollout, SampleRecord


@dataclass(frozen=True, kw_only=True)
class Right:
    """Which responses count as right in the pass rates of prompts: those with a score above a threshold.

    Args:
        by: The reward whose unweighted score decides, by its name in `model.rewards`; null for the weighted
            sum of all.
        threshold: A response with a higher score is right.
    """

    by: str | None = None
    threshold: float = 0.5

    def verdicts(
        self, rollout: Rollout, records: Sequence[SampleRecord] = ()
    ) -> list[tuple[Prompt, bool | None]]:
        """The prompt of every scored response of an iteration and whether it is right; None if unknown.

        Where dynamic sampling chose among several rounds, these are all responses of these rounds, kept or
        not; else those of the rollout, scored in `records`.
        """
        rounds = [one for one in rollout.besides if one.rewards is not None]
        if not rounds:
            return list(zip(prompts_of(rollout), map(self._of_record, records), strict=True))
        return [pair for one in rounds for pair in zip(prompts_of(one), self._of_round(one), strict=True)]

    def _of_record(self, record: SampleRecord) -> bool | None:
        score = record.reward if self.by is None else record.rewards[self.by]
        return None if score is None else score > self.threshold

    def _of_round(self, rollout: Rollout) -> list[bool | None]:
        scores = rollout.rewards
        assert scores is not None, "the caller has asked"
        if self.by is not None:
            return [None if score is None else score > self.threshold for score in scores.by_name[self.by]]
        known = zip(scores.total.tolist(), scores.scored.tolist(), strict=True)
        return [total > self.threshold if scored else None for total, scored in known]


def prompts_of(rollout: Rollout) -> list[Prompt]:
    """The prompt of each sample."""
    return [rollout.prompts[row] for row in rollout.firsts]


@dataclass(kw_only=True)
class PassRates:
    """The verdicts on the responses to each of `n` prompts so far, over all ranks.

    A response without a verdict (a reward abstained) is not counted.
    """

    visits: Int[Tensor, "n"]
    """Iterations in which the prompt was answered."""
    responses: Int[Tensor, "n"]
    right: Int[Tensor, "n"]
    recent_responses: Int[Tensor, "n"]
    """Those of the last iteration in which it was answered, likewise below."""
    recent_right: Int[Tensor, "n"]

    @classmethod
    def none(cls, size: int) -> "PassRates":
        """Those of prompts that nobody has answered yet."""
        return cls(**{field.name: torch.zeros(size, dtype=torch.int32) for field in fields(cls)})

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.visits)

    @property
    def known(self) -> Bool[Tensor, "n"]:
        """Whether a prompt has a pass rate."""
        return self.responses > 0

    @property
    def overall(self) -> Float[Tensor, "n"]:
        """The share of right ones among all responses of the run; NaN for a prompt without any."""
        return self.right.double() / self.responses

    @property
    def recent(self) -> Float[Tensor, "n"]:
        """The share of right ones at the last visit; NaN for a prompt without any."""
        return self.recent_right.double() / self.recent_responses

    def add(self, responses: Int[Tensor, "n"], right: Int[Tensor, "n"]) -> None:
        """Add the responses of an iteration."""
        seen = responses > 0
        self.visits += seen.to(self.visits.dtype)
        self.responses += responses.to(self.responses.dtype)
        self.right += right.to(self.right.dtype)
        self.recent_responses[seen] = responses[seen].to(self.responses.dtype)
        self.recent_right[seen] = right[seen].to(self.right.dtype)


def counts(verdicts: Sequence[tuple[Prompt, bool | None]], size: int) -> Int[Tensor, "2 n"]:
    """The responses with a verdict to each prompt, and the right ones among them."""
    known = [(prompt.row, right) for prompt, right in verdicts if right is not None]
    rows = torch.tensor([row for row, _ in known], dtype=torch.int64)
    right = torch.tensor([right for _, right in known], dtype=torch.int64)
    zeros = torch.zeros(size, dtype=torch.int64)
    return torch.stack([zeros.index_add(0, rows, torch.ones_like(rows)), zeros.index_add(0, rows, right)])


def write_pass_rates(path: Path, rates: PassRates, prompts: Sequence[Prompt]) -> None:
    """Write a table that people read: a line for each prompt with a pass rate, in the order of the data."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["row", "visits", "responses", "right", "pass_rate", "recent_pass_rate", "prompt"])
    overall, recent = rates.overall.tolist(), rates.recent.tolist()
    for row in rates.known.nonzero()[:, 0].tolist():
        numbers = [int(column[row]) for column in (rates.visits, rates.responses, rates.right)]
        table.writerow([row, *numbers, f"{overall[row]:.4g}", f"{recent[row]:.4g}", prompts[row].text])
    write_atomically(path, file.getvalue())
