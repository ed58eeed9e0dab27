"""Explains a skipped optimizer step: which tensors were NaN or infinite.

Computed only after a step was skipped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from grpo_pl.losses.base import PRECISION, SLOWER


class Source(NamedTuple):
    """Numbers of an optimizer step that may become NaN or infinite."""

    description: str
    advice: str
    """What to try if they do."""


BEFORE = {
    "parameters": Source(
        "the trained weights, since the step before",
        f"{SLOWER}, from a checkpoint of before: no later step mends weights",
    ),
    "sampling_logprobs": Source(
        "the engine's log-probabilities",
        "another data.engine.dtype (float32 is the safest), or data.engine InProcessEngine to see whose "
        "fault it is",
    ),
    "old_logprobs": Source("the policy's log-probabilities before the update", f"{SLOWER}, {PRECISION}"),
    "ref_logprobs": Source("the reference's log-probabilities", "model.reference.dtype: float32"),
    "teacher_logprobs": Source(
        "the teacher's log-probabilities of its likeliest tokens", "model.reference.dtype: float32"
    ),
    "old_values": Source("the critic's values before the update", "a lower model.critic_lr"),
    "advantages": Source(
        "the advantages",
        "rewards of moderate size (samples.jsonl shows them): model.reward_transforms Clip, or "
        "model.kl.bound where the KL is in the reward",
    ),
    "returns": Source("what the critic is to learn", "rewards of moderate size (samples.jsonl shows them)"),
    "weights": Source(
        "the weights of model.correction",
        "a look at sync/logprob_mismatch: the engine samples from another policy",
    ),
    "candidate_logprobs": Source(
        "the engine's log-probabilities of its likeliest tokens",
        "another data.engine.dtype (float32 is the safest), or data.sampling.top_logprobs 0",
    ),
    "prompt_weights": Source("the weights of prompts", "another model.aggregation"),
    "all_prompt_weights": Source("the weights of prompts for the critic", "another model.aggregation"),
    "stands_for": Source("how many tokens a sampled one stands for in metrics", "model.read_silent: 0"),
    "scores": Source("the reward model's scores", f"a lower model.optimizer.lr, {PRECISION}"),
    "logprobs": Source("the policy's log-probabilities", f"{SLOWER}, {PRECISION}"),
    "values": Source("the critic's values", f"a lower model.critic_lr, {PRECISION}"),
}
"""By name, in the order in which they are computed; the terms of the objective come after all of these."""
AFTER = {
    "loss": Source("the loss", SLOWER),
    "gradients": Source("the gradient", f"{SLOWER}, {PRECISION}"),
}
"""Numbers computed from the terms."""


@dataclass(frozen=True)
class NotFinite:
    """Numbers that are not finite."""

    name: str
    """A key of `BEFORE`, of the terms, or of `AFTER`."""
    source: Source
    where: str
    """Their number, or their parameters."""

    def __str__(self) -> str:
        return f"{self.source.description} ({self.where})"


@dataclass(frozen=True)
class SkippedStep:
    """An optimizer step that was not taken; the same on every rank."""

    findings: tuple[NotFinite, ...]
    """In the order of computation: the first one is the probable cause."""

    @property
    def cause(self) -> NotFinite:
        """The first numbers that were not finite."""
        return self.findings[0]

    def __str__(self) -> str:
        return "not finite: " + ", then ".join(map(str, self.findings))


def explain(
    watched: Mapping[str, Sequence[Tensor]],
    parameters: Mapping[str, nn.Parameter],
    sum_over_ranks: Callable[[Tensor], Tensor],
    terms: Mapping[str, Source] = {},
) -> SkippedStep:
    """The numbers of a step that are NaN or infinite on any rank; collective.

    `watched` are those of each micro-batch by the name of their source; `parameters` are the trained ones in
    the order of a forward, with their gradients.
    """
    names, zero = list(parameters), torch.zeros(2)
    rows = [count(p) for p in parameters.values()]
    rows += [zero if p.grad is None else count(p.grad) for p in parameters.values()]
    rows += [sum((count(part) for part in parts), zero) for parts in watched.values()]
    counts = sum_over_ranks(torch.stack(rows)).cpu()
    of_parameters, of_gradients, of_numbers = counts.split([len(names), len(names), len(watched)])
    where = {
        key: f"{bad:.0f} of {total:.0f} numbers"
        for key, (bad, total) in zip(watched, of_numbers.tolist(), strict=True)
        if bad
    }
    for key, bad in (("parameters", of_parameters[:, 0]), ("gradients", of_gradients[:, 0])):
        if broken := [name for name, number in zip(names, bad.tolist(), strict=True) if number]:
            first = broken[-1] if key == "gradients" else broken[0]  # a backward starts with the last ones
            where[key] = f"of {len(broken)} of {len(names)} parameters, first of {first}"
    where = where or {"gradients": "its norm alone, whose square is too large for a float32"}
    sources = chain(BEFORE.items(), terms.items(), AFTER.items())
    return SkippedStep(tuple(NotFinite(key, source, where[key]) for key, source in sources if key in where))


@torch.no_grad()
def count(numbers: Tensor) -> Tensor:
    """The numbers on this rank that are not finite, and all numbers on it."""
    local = numbers.to_local() if isinstance(numbers, DTensor) else numbers
    return torch.tensor([float((~local.isfinite()).sum()), float(local.numel())])
