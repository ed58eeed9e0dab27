"""Validation: rollouts and verifiers -> accuracies with intervals, independent of the training reward."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from grpo_pl.functional import majority_at_k, pass_at_k, wilson_interval
from grpo_pl.rewards.base import RewardError, Verifier, declared_scores, describe
from grpo_pl.runs.verdicts import ProblemVerdicts, in_order, problem_id
from grpo_pl.system.collectives import each_rank_says
from grpo_pl.types import Rollout, Sample

log = logging.getLogger(__name__)


class MeanWithInterval(Metric):
    """The mean of numbers in [0, 1] over all ranks, with its 95 % confidence interval.

    Wilson's interval where every number is 0 or 1, else the normal approximation. Each number is added by
    `copies` ranks.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self.copies = copies
        for state in ("total", "squares", "count"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: float) -> None:
        """Add one problem's score."""
        self.total += value
        self.squares += value * value
        self.count += 1

    def compute(self) -> tuple[float, float, float]:
        """Mean, and the lower and upper end of its interval."""
        total, squares = self.total.item() / self.copies, self.squares.item() / self.copies
        count = int(self.count.item()) // self.copies
        mean = total / max(count, 1)
        if total == squares:
            return mean, *wilson_interval(total, count)
        half = 1.96 * math.sqrt(max(squares / count - mean * mean, 0.0) / max(count - 1, 1))
        return mean, max(mean - half, 0.0), min(mean + half, 1.0)


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to the limit."""
    return [1 << i for i in range(limit.bit_length())]


def extract_or_abstain(name: str, verifier: Verifier, sample: Sample) -> str | None:
    """The answer that votes; an error is treated as `on_error` says: none, or the end of the run."""
    try:
        return verifier.extract(sample.prompt.opened + sample.response)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        message = f"Verifier {name!r} failed to extract an answer with {type(error).__name__}: {error}"
        if verifier.on_error == "raise":
            raise RewardError(f"{message} ({describe(sample)}); on_error: abstain would go on") from error
        log.warning("%s (%s); it has no answer.", message, describe(sample))
        return None


class Evaluation:
    """Collects the verdicts of one validation.

    Greedy rollouts (temperature 0) give `val/<name>`; rollouts with n responses a problem give
    `val/<name>_pass@k` and `val/<name>_majority@k` for k = 1, 2, 4, ... <= n. Each comes with `_low` and
    `_high`. A problem on which the verifier abstains counts as wrong; `val/<name>_abstained` is the share of
    responses without a verdict. An error of the verifier does what its `on_error` says, in worker processes
    too: `raise` ends the run with a message that shows the response, `abstain` logs a warning.

    Args:
        verifiers: Verifiers of responses by name.
        device: Device of the sums over ranks.
        copies: Ranks that see the same rollouts.
    """

    def __init__(self, verifiers: Mapping[str, Verifier], device: torch.device, copies: int = 1) -> None:
        self.verifiers, self.device, self.copies = verifiers, device, copies
        self.means: dict[str, MeanWithInterval] = {}
        self.without_interval: set[str] = set()
        self._solved: dict[str, dict[str, list[bool]]] = {}

    def _add(self, name: str, value: float) -> None:
        if name not in self.means:  # to make one takes longer than to add to it
            self.means[name] = MeanWithInterval(self.copies).to(self.device)
        self.means[name].update(value)

    def _add_plain(self, name: str, value: float) -> None:
        self.without_interval.add(name)
        self._add(name, value)

    def update(self, rollout: Rollout) -> None:
        """Verify the responses of a rollout."""
        greedy, samples = rollout.temperature == 0, rollout.samples
        which = "val" if greedy else "val_sampled"
        for name, verifier in self.verifiers.items():
            scores = declared_scores(f"Verifier {name!r}", verifier, samples)
            correct = [score == 1.0 for score in scores]
            for score in scores:
                self._add_plain(f"{which}/{name}_abstained", float(score is None))
            solved = self._solved.setdefault(f"{which}/{name}", {})
            if greedy:
                for sample, verdict in zip(samples, correct, strict=True):
                    self._add(f"val/{name}", float(verdict))
                    solved[problem_id(sample.prompt)] = [verdict]
                continue
            group_ids = rollout.group_ids[rollout.firsts]
            for group in sorted(set(group_ids.tolist())):
                rows = (group_ids == group).nonzero()[:, 0].tolist()
                verdicts = [correct[row] for row in rows]
                solved[problem_id(samples[rows[0]].prompt)] = verdicts
                answers = [extract_or_abstain(name, verifier, samples[row]) for row in rows]
                for k in powers_of_two(len(rows)):
                    self._add(f"val/{name}_pass@{k}", pass_at_k(verdicts, k))
                    if k > 1:
                        self._add(f"val/{name}_majority@{k}", majority_at_k(answers, verdicts, k))
        for sample in samples:
            self._add_plain(f"{which}/truncated", float(sample.truncated))
            self._add_plain(f"{which}/response_tokens", float(sample.response_tokens))

    def compute(self) -> dict[str, float]:
        """All metrics of this validation; collective."""
        values: dict[str, float] = {}
        for name, metric in self.means.items():
            mean, low, high = metric.compute()
            values[name] = mean
            if name not in self.without_interval:
                values |= {f"{name}_low": low, f"{name}_high": high}
        return values

    def verdicts(self) -> list[ProblemVerdicts]:
        """The verdicts on each problem, of all ranks; collective."""
        everywhere: dict[str, dict[str, list[bool]]] = {}
        for of_rank in each_rank_says(self._solved):
            for name, solved in of_rank.items():
                everywhere.setdefault(name, {}).update(solved)
        return [in_order(name, solved) for name, solved in everywhere.items() if solved]
