"""Which prompts each iteration visits, and how often they were answered right."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_pl.functional import derive_seed
from grpo_pl.prompts.curriculum import Curriculum
from grpo_pl.prompts.pass_rates import PassRates, Right, counts
from grpo_pl.prompts.prompt_set import PromptSet, iteration_prompts, part_of_rank
from grpo_pl.prompts.walk import Walk
from grpo_pl.types import Prompt, Rollout, SampleRecord

log = logging.getLogger(__name__)


class Visits:
    """The training prompts of a run in the order in which it visits them.

    Without a curriculum this order is `iteration_prompts`. With one, the prompts of iteration i are drawn
    from the same stream as soon as the verdicts of iteration `i - delay - 1` are known, whoever asks when: an
    engine that samples `delay` iterations ahead, one that does not, and a resumed run visit the same prompts.
    Every rank draws for all ranks, by pass rates summed over ranks.

    Args:
        prompts: The training prompts.
        prompts_per_iteration: Those of one iteration, over all ranks.
        seed: Seed of the run.
        right: Which responses count as right.
        curriculum: Which prompts are drawn less often; None for the plain order.
        delay: Iterations by which the pass rates are late, where the curriculum does not say.
    """

    def __init__(
        self,
        prompts: PromptSet,
        *,
        prompts_per_iteration: int,
        seed: int,
        right: Right = Right(),
        curriculum: Curriculum | None = None,
        delay: int = 0,
    ) -> None:
        self.prompts, self.prompts_per_iteration, self.seed = prompts, prompts_per_iteration, seed
        self.right, self.curriculum = right, curriculum
        self.delay = delay if curriculum is None or curriculum.delay is None else curriculum.delay
        self.rates = PassRates.none(len(prompts))
        self._walk = Walk(len(prompts), seed, "prompts")
        self._others = Walk(len(prompts), seed, "again")
        self._drawn: dict[int, list[int]] = {}
        self._replacing, self._used = -1, set[int]()
        self._warned = False

    def of(self, iteration: int, rank: int = 0, ranks: int = 1) -> list[Prompt]:
        """The prompts of an iteration on a rank."""
        place = {"iteration": iteration, "seed": self.seed, "rank": rank, "world_size": ranks}
        if self.curriculum is None:
            count = self.prompts_per_iteration
            return iteration_prompts(self.prompts, prompts_per_iteration=count, **place)
        if iteration not in self._drawn:
            self._draw(iteration, iteration + self.delay)
        return part_of_rank(self.prompts, self._drawn[iteration], **place)

    def instead(self, iteration: int, again: int, shares: Sequence[int], rank: int = 0) -> list[Prompt]:
        """Prompts for round `again` of an iteration's dynamic sampling, `shares[r]` of them on rank `r`.

        They come from a stream of their own, one permutation after the other over the whole run, without the
        prompts of this iteration and without those it has got instead, on any rank. If there are no others,
        these come again.
        """
        if iteration != self._replacing:
            self._replacing, self._used = iteration, {prompt.row for prompt in self.of(iteration)}
        rows = self._others.take(sum(shares), self._chances(), self._used)
        first = sum(shares[:rank])
        return [
            replace(self.prompts[rows[n]], seed=derive_seed(self.seed, "again", iteration, again, n))
            for n in range(first, first + shares[rank])
        ]

    def record(
        self,
        iteration: int,
        rollout: Rollout,
        records: Sequence[SampleRecord],
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> dict[str, float]:
        """Count the verdicts of an iteration; its metrics where there is a curriculum. Collective."""
        verdicts = self.right.verdicts(rollout, records)
        self.rates.add(*sum_over_ranks(counts(verdicts, len(self.prompts))).cpu())
        if self.curriculum is None:
            return {}
        self._drawn = {later: rows for later, rows in self._drawn.items() if later > iteration}
        self._draw(iteration + 1, iteration + 1 + self.delay)
        return self._metrics(self.curriculum)

    def _draw(self, first: int, last: int) -> None:
        """Draw the prompts of these iterations, in their order, by the pass rates that are known now."""
        if not self._walk.place:
            self._walk.place = first * self.prompts_per_iteration
        chances = self._chances()
        for iteration in range(first, last + 1):
            if iteration not in self._drawn:
                self._drawn[iteration] = self._walk.take(self.prompts_per_iteration, chances)

    def _chances(self) -> list[float] | None:
        """The chance of each prompt; None where all are drawn."""
        if self.curriculum is None:
            return None
        chances = chances_of(self.curriculum, self.rates)
        if not self._warned and not bool(chances.any()):
            log.warning("! data.curriculum would draw no prompt any more: all are drawn again")
            self._warned = True
        return chances.tolist()

    def _metrics(self, curriculum: Curriculum) -> dict[str, float]:
        known, passed = self.rates.known, self.rates.recent
        seldom = known & (chances_of(curriculum, self.rates) < 1)
        metrics = {
            "rollout/prompts_visited": float(known.double().mean()),
            "rollout/prompts_easy": float((seldom & (passed >= 0.5)).double().mean()),
            "rollout/prompts_hard": float((seldom & (passed < 0.5)).double().mean()),
        }
        return metrics | ({"rollout/pass_rate": float(passed[known].mean())} if bool(known.any()) else {})

    def state_dict(self) -> dict[str, Any]:
        """Pass rates, places in the streams, and the prompts that are drawn already."""
        rates = {field.name: getattr(self.rates, field.name).clone() for field in fields(PassRates)}
        drawn = [[iteration, *rows] for iteration, rows in self._drawn.items()]
        return {"rates": rates, "drawn": drawn, "places": [self._walk.place, self._others.place]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the run that saved this state of the same prompts would have gone on."""
        self.rates = PassRates(**{name: column.clone() for name, column in state["rates"].items()})
        size = self.prompts_per_iteration
        self._drawn = {first: rows for first, *rows in state["drawn"] if len(rows) == size}
        self._walk.place, self._others.place = state["places"]
        self._replacing = -1


def chances_of(curriculum: Curriculum, rates: PassRates) -> Float[Tensor, "n"]:
    """The chance of each prompt, 1 where it has no pass rate yet."""
    chances = torch.where(rates.known, curriculum.chances(rates).double(), 1.0)
    assert bool(((chances >= 0) & (chances <= 1)).all()), "a chance lies in [0, 1]"
    return chances
