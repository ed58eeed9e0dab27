"""Dynamic sampling: groups without a signal are replaced before they are learned from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from grpo_pl.functional import group_is_constant, groups_with, pad_rows
from grpo_pl.rollout.support import widened
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Rollout, ScoredSamples


@final
class DynamicSampling:
    """Replaces groups without a signal by other prompts' groups, up to a bound.

    DAPO, arXiv:2503.14476, section 3.2. At the bound, the last groups without a signal stay, so that all
    iterations have the same number of groups (the paper samples on). Each response is scored once: the scores
    travel with the rollout. The cost is logged: `rollout/rounds`, `rollout/groups_replaced` and
    `rollout/tokens_thrown_away`.

    Whether a group has a signal is asked of `model.advantage`: whether it would give a response an advantage.
    With a reward of length or format beside the one of correctness almost every group has one; the paper
    judges by correctness alone, which is `by: correct`.

    Args:
        rounds: The most rounds of sampling in one iteration, the first one included.
        by: The names in model.rewards of the rewards to judge by, one or several, of any weight: a group has
            a signal where two scored responses differ in one of them. Null asks model.advantage.
    """

    def __init__(self, rounds: int = 3, by: str | list[str] | None = None) -> None:
        if rounds < 2:
            raise ArgumentError(
                f"rounds={rounds} never samples again: set it to 2 or more, or leave resampling out (null)"
            )
        if by is not None and not by:
            raise ArgumentError("by names no reward: name one of model.rewards, or leave it out (null)")
        self.rounds = rounds
        self.by = [by] if isinstance(by, str) else by

    def __call__(
        self,
        prompts: Sequence[Prompt],
        generate: Callable[[Sequence[Prompt]], Rollout],
        score: Callable[[Rollout], ScoredSamples],
        other_prompts: Callable[[int, int], Sequence[Prompt]],
        on_any_rank: Callable[[bool], bool] = bool,
        has_signal: Callable[[Rollout], Bool[Tensor, "N"]] | None = None,
    ) -> Rollout:
        """A scored rollout of as many groups as there are prompts.

        `other_prompts(round, count)` gives prompts for a later round. All ranks take the same number of
        rounds, by `on_any_rank`, since engines and reward models may serve several at once. `has_signal` is
        asked once of the responses of each round, unless `by` judges.
        """
        judge = has_signal if self.by is None and has_signal is not None else partial(differs, names=self.by)
        sampled = [rollout := with_scores(generate(prompts), score)]
        silent = groups_where(rollout, judge, signal=False)
        while len(sampled) < self.rounds and on_any_rank(bool(silent)):
            again = with_scores(generate(other_prompts(len(sampled), max(len(silent), 1))), score)
            sampled.append(again)
            found = groups_where(again, judge, signal=True)
            for place, group in zip(silent, found, strict=False):
                rollout = replace_group(rollout, place, again, group)
            silent = silent[len(found) :]
        generated = sum(int(one.loss_mask.sum()) for one in sampled)
        replaced = sum(a is not b for a, b in zip(first_prompts(rollout), prompts, strict=True))
        metrics = {
            "rollout/rounds": float(len(sampled)),
            "rollout/groups_replaced": replaced / len(prompts),
            "rollout/tokens_thrown_away": 1 - int(rollout.loss_mask.sum()) / max(generated, 1),
        }
        besides = sampled if len(sampled) > 1 else []
        assert rollout.rewards is not None, "it was scored above"
        rewards = replace(rollout.rewards, **all_failures(sampled))
        return replace(rollout, besides=besides, rewards=rewards, metrics=rollout.metrics | metrics)


def with_scores(rollout: Rollout, score: Callable[[Rollout], ScoredSamples]) -> Rollout:
    """The rollout and its scores."""
    return replace(rollout, rewards=score(rollout))


def groups_where(
    rollout: Rollout, judge: Callable[[Rollout], Bool[Tensor, "N"]], *, signal: bool
) -> list[int]:
    """The groups with a response that has a signal, or those without."""
    marked = groups_with(judge(rollout).cpu(), rollout.group_ids[rollout.firsts]).tolist()
    return [group for group, has in enumerate(marked) if has == signal]


def differs(rollout: Rollout, names: Sequence[str] | None) -> Bool[Tensor, "N"]:
    """The scored responses of groups that differ in one of the named rewards; without names, in the total."""
    assert rollout.rewards is not None, "dynamic sampling scores what it samples"
    scored, groups = rollout.rewards.scored, rollout.group_ids[rollout.firsts]
    if names is None:
        return scored & ~group_is_constant(rollout.rewards.total, groups, scored)
    some = torch.zeros_like(scored)
    for name in names:
        scores = rollout.rewards.by_name[name]
        known = scored & torch.tensor([score is not None for score in scores])
        values = torch.tensor([score or 0.0 for score in scores], dtype=torch.float64)
        some |= known & ~group_is_constant(values, groups, known)
    return some


def all_failures(sampled: Sequence[Rollout]) -> dict[str, Any]:
    """The failures of workers and the samples that were scored, over all rounds."""
    scored = [rollout.rewards for rollout in sampled if rollout.rewards is not None]
    failures = {
        name: {kind: sum(one.failures[name][kind] for one in scored) for kind in kinds}
        for name, kinds in scored[0].failures.items()
    }
    return {"failures": failures, "attempts": sum(one.attempts for one in scored)}


def first_prompts(rollout: Rollout) -> list[Prompt]:
    """The prompt of each group, in the order of the groups."""
    ids = rollout.group_ids.tolist()
    return [rollout.prompts[ids.index(group)] for group in sorted(set(ids))]


def replace_group(rollout: Rollout, place: int, other: Rollout, group: int) -> Rollout:
    """The rollout with the responses of group `place` replaced by those of `group` in another rollout."""
    ours, theirs = rollout.columns, other.columns
    theirs["group_ids"] = torch.full_like(other.group_ids, place)
    if rollout.episodes is not None or other.episodes is not None:
        own, new = (x.get("episodes", torch.arange(len(x["prompts"]))) for x in (ours, theirs))
        ours["episodes"], theirs["episodes"] = own, new + own.max() + 1
    swap = Swap.of(rollout.group_ids, place, other.group_ids, group)
    changed = {name: swap(column, theirs[name]) for name, column in ours.items()}
    if rollout.rewards is not None:
        firsts = rollout.group_ids[rollout.firsts], other.group_ids[other.firsts]
        of_samples = Swap.of(firsts[0], place, firsts[1], group)
        scores = {
            name: of_samples(getattr(rollout.rewards, name), getattr(other.rewards, name))
            for name in ("by_name", "total", "weighted", "outcome", "steps", "scored")
        }
        changed["rewards"] = replace(rollout.rewards, **scores)
    return replace(rollout, **changed)


class Swap(NamedTuple):
    """Puts some entries of one column in the place of neighbouring ones in another."""

    start: int
    stop: int
    new: list[int]

    @classmethod
    def of(cls, ids: Int[Tensor, "N"], place: int, others: Int[Tensor, "M"], group: int) -> "Swap":
        """Entries of a group, which stand side by side, for those of another rollout's group."""
        old = (ids == place).nonzero()[:, 0].tolist()
        return cls(old[0], old[-1] + 1, (others == group).nonzero()[:, 0].tolist())

    def __call__(self, ours: Any, theirs: Any) -> Any:
        """A tensor `[N, T, K]`, `[N, T]` or `[N]`, a list of `N`, or a dictionary of such."""
        if isinstance(ours, dict):
            return {name: self(ours[name], theirs[name]) for name in ours}
        if not isinstance(ours, Tensor):
            return None if ours is None else self._rows(ours, theirs)
        if ours.ndim > 1:
            width = max(ours.shape[1], theirs.shape[1])
        if ours.ndim == 3:
            most = max(ours.shape[2], theirs.shape[2])
            ours, theirs = widened(ours, width, most), widened(theirs, width, most)
        rows = self._rows(ours, theirs)
        return pad_rows(rows, width) if ours.ndim == 2 else torch.stack(rows)

    def _rows(self, ours: Any, theirs: Any) -> list[Any]:
        return [*ours[: self.start], *(theirs[row] for row in self.new), *ours[self.stop :]]
