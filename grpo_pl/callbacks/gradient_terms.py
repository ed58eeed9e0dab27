"""Measures the gradient of each term of the objective, on request."""

import math
from functools import reduce
from operator import add
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from grpo_pl.losses.objective import Objective
from grpo_pl.system.refusal import ArgumentError, ConfigError
from grpo_pl.training.gradients import Gradient, cosine, length, set_aside, taken
from grpo_pl.training.ranks import data_ranks
from grpo_pl.training.strategies import FSDP2Strategy
from grpo_pl.types import Experience, TokenScores

PREFIX = "gradient/"


@runtime_checkable
class HasObjective(Protocol):
    """A module that minimises an objective, as a callback that measures its terms sees it."""

    @property
    def objective(self) -> Objective:
        """The minimised objective."""

    def scores(self, batch: Experience) -> TokenScores:
        """The scores of a micro-batch by the trained models."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by the model that they belong to; the first group is the policy."""


class GradientTerms(pl.Callback):
    """Measures the gradient of each term of the objective in the first optimizer step of some iterations.

    After that step's backward and before its gradient is clipped, all of its micro-batches are read again,
    once for each term, with the other terms weighted 0. So the terms' gradients are those of the whole step,
    over all ranks, and add up to the step's gradient, which is set aside and restored. What is trained does
    not change by a bit. Of g, the gradient of a term on the policy's parameters (its adapters, where it has
    some), and of the whole gradient:

    - `gradient/norm`: |whole|;
    - `gradient/<term>_norm`: |g|; `<term>` is `policy`, `kl`, `entropy`, `value`, or a name in
      `model.terms`;
    - `gradient/<term>_share`: |g| / |whole|; shares may add up to more than 1, where terms work against each
      other;
    - `gradient/<term>_cosine`: of the angle between g and the whole;
    - `gradient/<term>_policy_cosine`: of the angle between g and the policy term's gradient;
    - `gradient/<term>_critic_norm`: the norm of the term's gradient on the critic's own parameters.

    Values of exactly 0 are left out, and everything in a step that is skipped because a number is not finite.
    A measurement costs a forward and a backward of the step for each term, and memory for two more gradients.

    Args:
        every: Iterations from one measurement to the next; null for none.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ArgumentError(f"every={every}: expected 1 or more iterations, or null for none")
        self.every = every
        self._batches: list[Experience] = []

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse strategies that keep no gradient with its parameter, and precisions that scale gradients."""
        if self.every is None:
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | FSDP2Strategy):
            raise ConfigError(
                f"gradient_terms.every={self.every} cannot be measured with trainer.strategy "
                f"{type(trainer.strategy).__name__}: set it to fsdp2 or ddp, or gradient_terms.every to null"
            )
        if trainer.precision == "16-mixed":
            raise ConfigError(
                f"gradient_terms.every={self.every} cannot be measured with trainer.precision 16-mixed, "
                "which scales gradients: set it to bf16-mixed, or gradient_terms.every to null"
            )

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the micro-batches of a step that will be measured."""
        due = self.every is not None and (trainer.current_epoch + 1) % self.every == 0
        if due and batch_idx < trainer.accumulate_grad_batches:
            self._batches.append(batch)

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        batches, self._batches = self._batches, []
        if not batches:
            return
        assert isinstance(pl_module, HasObjective), "the job policy alone has this callback"
        measured = {PREFIX + name: value for name, value in measure(trainer, pl_module, batches).items()}
        pl_module.log_dict(measured, on_step=False, on_epoch=True, batch_size=1)


def measure(trainer: pl.Trainer, module: HasObjective, batches: list[Experience]) -> dict[str, float]:
    """The norms, shares and cosines of `GradientTerms`; the same on every rank, and collective."""
    (_, policy), *others = module.parameter_groups().items()
    with set_aside([p for _, group in others for p in group]), set_aside(policy) as whole:
        norm = length(whole)
        if norm == 0 or not math.isfinite(norm):
            return {}
        measured = {"norm": norm}
        first: Gradient = []
        for term in module.objective.terms:
            backward(trainer, module, term, batches)
            for group, parameters in others:
                measured[f"{term}_{group}_norm"] = length(summed(trainer, parameters))
            gradient = summed(trainer, policy)
            first = first or gradient
            size = length(gradient)
            of_term = {"norm": size, "share": size / norm, "cosine": cosine(gradient, whole)}
            if first is not gradient:
                of_term["policy_cosine"] = cosine(gradient, first)
            measured |= {f"{term}_{name}": value for name, value in of_term.items()}
    return {name: value for name, value in measured.items() if value}


def backward(trainer: pl.Trainer, module: HasObjective, term: str, batches: list[Experience]) -> None:
    """Leave the gradient of one term with the parameters, for strategies to average over ranks."""
    for batch in batches:
        with torch.enable_grad(), trainer.precision_plugin.forward_context():
            shares = module.objective(module.scores(batch), batch).shares
            alone = reduce(add, (share * float(name == term) for name, share in shares.items()))
        (alone * data_ranks(trainer).size).backward()


def summed(trainer: pl.Trainer, parameters: list[nn.Parameter]) -> Gradient:
    """Take a backward's gradients from the parameters; those of whole models are averaged, as DDP would."""
    gradients = taken(parameters)
    if isinstance(trainer.strategy, DDPStrategy):
        gradients = [None if g is None else trainer.strategy.reduce(g, reduce_op="mean") for g in gradients]
    return gradients
