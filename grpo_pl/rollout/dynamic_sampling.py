"""Dynamic sampling: groups that teach nothing are replaced before they are learned from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

import torch

from grpo_pl.functional import pad_rows
from grpo_pl.types import Prompt, Rollout


@final
class DynamicSampling:
    """Throws groups without variance out and samples other prompts in their place, up to a bound.

    DAPO, arXiv:2503.14476, section 3.2. Where the bound is reached, the last groups without variance stay, so
    that every iteration has as many groups as every other (the paper samples on). Rewards are computed once
    more for the choice. What it costs is logged: `rollout/rounds`, `rollout/groups_replaced` and
    `rollout/tokens_thrown_away`.

    Args:
        rounds: How often the engine is asked at most in one iteration, the first time included.
    """

    def __init__(self, rounds: int = 3) -> None:
        if rounds < 2:
            raise ValueError(
                f"data.resample.rounds={rounds} never samples again: set it to 2 or more, or data.resample "
                "to null"
            )
        self.rounds = rounds

    def __call__(
        self,
        prompts: Sequence[Prompt],
        generate: Callable[[Sequence[Prompt]], Rollout],
        has_signal: Callable[[Rollout], Sequence[bool]],
        other_prompts: Callable[[int, int], Sequence[Prompt]],
        on_any_rank: Callable[[bool], bool] = bool,
    ) -> Rollout:
        """A rollout of as many groups as there are prompts.

        `has_signal` says of each group whether its rewards differ; `other_prompts(round, count)` gives
        prompts for a later round. All ranks go through as many rounds as the one that needs most, since
        engines and reward models may work for several at once: `on_any_rank` asks them.
        """
        rollout = generate(prompts)
        sampled = [rollout]
        generated, good, rounds = int(rollout.loss_mask.sum()), list(has_signal(rollout)), 1
        while rounds < self.rounds and on_any_rank(not all(good)):
            silent = [group for group, it_has in enumerate(good) if not it_has]
            again = generate(other_prompts(rounds, max(len(silent), 1)))
            sampled.append(again)
            generated += int(again.loss_mask.sum())
            better = [group for group, it_has in enumerate(has_signal(again)) if it_has]
            for place, group in zip(silent, better, strict=False):
                good[place] = True
                rollout = replace_group(rollout, place, again, group)
            rounds += 1
        thrown = 1 - int(rollout.loss_mask.sum()) / max(generated, 1)
        replaced = sum(a is not b for a, b in zip(first_prompts(rollout), prompts, strict=True))
        metrics = {
            "rollout/rounds": float(rounds),
            "rollout/groups_replaced": replaced / len(prompts),
            "rollout/tokens_thrown_away": thrown,
        }
        besides = sampled if rounds > 1 else []
        return replace(rollout, besides=besides, metrics=rollout.metrics | metrics)


def first_prompts(rollout: Rollout) -> list[Prompt]:
    """The prompt of each group, in the order of the groups."""
    ids = rollout.group_ids.tolist()
    return [rollout.prompts[ids.index(group)] for group in sorted(set(ids))]


def replace_group(rollout: Rollout, place: int, other: Rollout, group: int) -> Rollout:
    """The rollout with the responses of group `place` replaced by those of `group` in another rollout."""
    old = (rollout.group_ids == place).nonzero()[:, 0].tolist()
    new = (other.group_ids == group).nonzero()[:, 0].tolist()
    instead = dict(zip(old, new, strict=True))
    rows = range(len(rollout.prompts))
    width = max(rollout.token_ids.shape[1], other.token_ids.shape[1])

    def tensor(name: str) -> torch.Tensor:
        ours, theirs = getattr(rollout, name), getattr(other, name)
        return pad_rows([theirs[instead[r]] if r in instead else ours[r] for r in rows], width)

    def each(name: str) -> list:  # type: ignore[type-arg]
        ours, theirs = getattr(rollout, name), getattr(other, name)
        return [theirs[instead[r]] if r in instead else ours[r] for r in rows]

    return replace(
        rollout,
        token_ids=tensor("token_ids"),
        loss_mask=tensor("loss_mask"),
        sampling_logprobs=tensor("sampling_logprobs"),
        prompts=each("prompts"),
        responses=each("responses"),
        token_ends=each("token_ends"),
        truncated=torch.stack(each("truncated")),
    )
