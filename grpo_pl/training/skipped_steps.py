"""Why an optimizer step was not taken: which of its numbers are not finite. Nobody looks before one is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

SLOWER = "a lower model.optimizer.lr, trainer.gradient_clip_val: 1, model.kl.bound: 10"
PRECISION = "trainer.precision: bf16-mixed or 32-true"
SOURCES = {
    "parameters": (
        "the trained weights, since the step before",
        f"{SLOWER}, from a checkpoint of before: no later step mends weights",
    ),
    "sampling_logprobs": (
        "the engine's log-probabilities",
        "another data.engine.dtype (float32 is the safest), or data.engine InProcessEngine to see whose "
        "fault it is",
    ),
    "old_logprobs": ("the policy's log-probabilities before the update", f"{SLOWER}, {PRECISION}"),
    "ref_logprobs": ("the reference's log-probabilities", "model.reference.dtype: float32"),
    "old_values": ("the critic's values before the update", "a lower model.critic_lr"),
    "advantages": (
        "the advantages",
        "rewards of moderate size (samples.jsonl shows them): model.reward_transforms Clip, or "
        "model.kl.bound where the KL is in the reward",
    ),
    "returns": ("what the critic is to learn", "rewards of moderate size (samples.jsonl shows them)"),
    "weights": (
        "the weights of model.correction",
        "a look at sync/logprob_mismatch: the engine samples from another policy",
    ),
    "prompt_weights": ("the weights of prompts", "another model.aggregation"),
    "scores": ("the reward model's scores", f"a lower model.optimizer.lr, {PRECISION}"),
    "logprobs": ("the policy's log-probabilities", f"{SLOWER}, {PRECISION}"),
    "values": ("the critic's values", f"a lower model.critic_lr, {PRECISION}"),
    "model.loss": ("the policy loss of tokens", f"{SLOWER}, or another model.loss"),
    "model.kl": ("the penalty of the KL", "model.kl.bound: 10, a lower model.optimizer.lr"),
    "model.entropy": ("the entropy bonus", f"a lower model.entropy.coefficient, {PRECISION}"),
    "model.value_loss": ("the critic's loss of tokens", "a lower model.critic_lr"),
    "loss": ("the loss", SLOWER),
    "gradients": ("the gradient", f"{SLOWER}, {PRECISION}"),
}
"""Numbers of an optimizer step, each before those that are made of it: what they are, and what to try."""


@dataclass(frozen=True)
class Finding:
    """Numbers that are not finite."""

    source: str
    """A key of `SOURCES`."""
    where: str
    """How many of them, or of which parameters."""

    @property
    def advice(self) -> str:
        """What to try."""
        return SOURCES[self.source][1]

    def __str__(self) -> str:
        return f"{SOURCES[self.source][0]} ({self.where})"


@dataclass(frozen=True)
class SkippedStep:
    """An optimizer step that was not taken; the same on every rank."""

    findings: tuple[Finding, ...]
    """In the order in which the numbers are made: the first one is the cause, as far as can be told."""

    @property
    def cause(self) -> Finding:
        """What was not finite first."""
        return self.findings[0]

    def __str__(self) -> str:
        return "not finite: " + ", then ".join(map(str, self.findings))


def explain(
    watched: Mapping[str, Sequence[Tensor]],
    parameters: Mapping[str, nn.Parameter],
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> SkippedStep:
    """What of a step is not finite, on any rank; collective.

    Args:
        watched: Keys of `SOURCES`, and the numbers of each micro-batch.
        parameters: The trained ones, with their gradients, in the order of a forward.
        sum_over_ranks: The sum of a tensor over all ranks.
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
        if broken := [name for name, here in zip(names, bad.tolist(), strict=True) if here]:
            seen = broken[-1] if key == "gradients" else broken[0]  # a backward comes to the last ones first
            where[key] = f"of {len(broken)} of {len(names)} parameters, first of {seen}"
    where = where or {"gradients": "its norm alone, whose square is too large for a float32"}
    return SkippedStep(tuple(Finding(key, where[key]) for key in SOURCES if key in where))


@torch.no_grad()
def count(numbers: Tensor) -> Tensor:
    """How many of the numbers on this rank are not finite, and how many there are."""
    here = numbers.to_local() if isinstance(numbers, DTensor) else numbers
    return torch.tensor([float((~here.isfinite()).sum()), float(here.numel())])
