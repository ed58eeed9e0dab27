"""Curricula: which prompts are drawn less often, by their pass rates."""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.prompts.pass_rates import PassRates
from grpo_pl.system.refusal import ArgumentError


class Curriculum(ABC):
    """Says how often each prompt is drawn when its turn comes.

    Training goes through one permutation of the prompts after the other; each is a turn of every prompt. A
    prompt with chance c is drawn in `floor(c T)` or `ceil(c T)` of any T turns in which c stays, so at least
    once in `ceil(1 / c)` turns, and never if c is 0. Prompts without a pass rate are always drawn; if no
    prompt could be drawn, all are. The pass rates that decide on iteration i are those of the iterations
    before i - delay.

    Args:
        delay: Iterations by which the pass rates are late; null for as few as the engine's sampling ahead
            allows, which is 0 for an engine that does not.
    """

    def __init__(self, delay: int | None = None) -> None:
        if delay is not None and delay < 0:
            raise ArgumentError(f"delay={delay}: expected 0 or more iterations, or null")
        self.delay = delay

    @abstractmethod
    def chances(self, rates: PassRates) -> Float[Tensor, "n"]:
        """The chance of each prompt in [0, 1]; that of a prompt without a pass rate is not looked at."""


@final
class DifficultyWindow(Curriculum):
    """Draws prompts outside of a window of pass rates less often: their groups have little or no signal.

    The chance is 1 where `low < p < high` for the pass rate p of the last visit, `keep_hard` where p <= low,
    and `keep_easy` where p >= high. The easy and hard pools of prime-rl (orchestrator buffer) are
    `keep_easy: 0` and `keep_hard: 0`; here such a prompt comes again by default, for the policy has moved.

    Args:
        low: Prompts with this pass rate or a lower one are hard.
        high: Prompts with this pass rate or a higher one are easy.
        keep_easy: The share of its turns in which an easy prompt is drawn.
        keep_hard: The share of its turns in which a hard prompt is drawn.
        delay: Iterations by which the pass rates are late; null for as few as the engine allows.
    """

    def __init__(
        self,
        low: float = 0.1,
        high: float = 0.9,
        keep_easy: float = 0.25,
        keep_hard: float = 0.25,
        delay: int | None = None,
    ) -> None:
        super().__init__(delay)
        if not 0 <= low < high <= 1:
            raise ArgumentError(f"low={low}: expected 0 <= low < high <= 1, with high={high}")
        for name, keep in (("keep_easy", keep_easy), ("keep_hard", keep_hard)):
            if not 0 <= keep <= 1:
                raise ArgumentError(f"{name}={keep}: expected a share in [0, 1]")
        self.low, self.high, self.keep_easy, self.keep_hard = low, high, keep_easy, keep_hard

    @override
    def chances(self, rates: PassRates) -> Float[Tensor, "n"]:
        passed = rates.recent
        chances = torch.where(passed <= self.low, self.keep_hard, torch.ones_like(passed))
        return torch.where(passed >= self.high, self.keep_easy, chances)


@final
class NoPositiveResampling(Curriculum):
    """Draws a prompt no more once the policy can do it: its pass rate over the whole run reaches a threshold.

    ScaleRL, arXiv:2510.13786, section 3.2. There prompts leave between epochs; here from the next draw on.
    The rate is that of all responses so far, so a prompt that was hard at first stays for some visits more.

    Args:
        threshold: The pass rate from which on a prompt is not drawn.
        delay: Iterations by which the pass rates are late; null for as few as the engine allows.
    """

    def __init__(self, threshold: float = 0.9, delay: int | None = None) -> None:
        super().__init__(delay)
        if not 0 < threshold <= 1:
            raise ArgumentError(f"threshold={threshold}: expected a pass rate in (0, 1]")
        self.threshold = threshold

    @override
    def chances(self, rates: PassRates) -> Float[Tensor, "n"]:
        return (rates.overall < self.threshold).double()
