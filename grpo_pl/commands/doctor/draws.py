"""Log-probabilities that an engine would report if it sampled by other settings than it was given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LIKELIEST = 1024
"""Likeliest tokens that are sorted: all that truncation keeps, or their mass up to that of one token."""
SUSPECTS: dict[str, Sequence[float]] = {
    "temperature": (1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.2, 1.5),
    "top_p": (0.5, 0.7, 0.8, 0.9, 0.95),
    "top_k": (5, 10, 20, 50, 100),
    "min_p": (0.02, 0.05, 0.1, 0.2),
    "repetition_penalty": (1.05, 1.1, 1.2),
}
"""Setting of a `Draw` -> its values in common defaults and recipes."""


@dataclass(frozen=True)
class Draw:
    """How a token is drawn from logits, in the order of vLLM: penalty, temperature, then truncation.

    Args:
        temperature: Divides the logits.
        top_p: Keeps the fewest likeliest tokens of at least this mass (Holtzman et al. 2020,
            arXiv:1904.09751); 1 keeps all.
        top_k: Keeps this many of the likeliest tokens; 0 keeps all.
        min_p: Keeps tokens of at least this share of the likeliest one's probability (Nguyen et al. 2024,
            arXiv:2407.01082).
        repetition_penalty: Divides positive logits of tokens seen before, and multiplies negative ones
            (Keskar et al. 2019, arXiv:1909.05858).
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def untruncated(self) -> "Draw":
        """The same settings without truncation."""
        return replace(self, top_p=1.0, top_k=0, min_p=0.0)

    def kept_mass(self, likeliest: Float[Tensor, "M K"]) -> Float[Tensor, "M"]:
        """The mass of the tokens that are kept, given the largest probabilities in descending order."""
        kept = torch.ones_like(likeliest, dtype=torch.bool)
        if self.top_k:
            kept[:, self.top_k :] = False
        if self.min_p:
            kept &= likeliest >= self.min_p * likeliest[:, :1]
        if self.top_p < 1:
            kept &= likeliest.cumsum(-1) - likeliest < self.top_p
        return torch.where(kept, likeliest, 0.0).sum(-1)


def logprobs(
    logits: Float[Tensor, "M V"],
    targets: Int[Tensor, "M"],
    seen: Bool[Tensor, "M V"],
    draws: Sequence[Draw],
) -> Float[Tensor, "D M"]:
    """Log-probability of each target in nats, for each way to draw; a target that is cut off counts as kept.

    Args:
        logits: Before the temperature, float32.
        targets: The tokens that were drawn.
        seen: The tokens that stand before a target, in prompt or response.
        draws: The ways to draw.
    """
    distributions: dict[Draw, tuple[Tensor, Tensor]] = {}
    rows = []
    for draw in draws:
        if draw.untruncated not in distributions:
            whole = distribution(logits, seen, draw)
            likeliest = whole.topk(min(LIKELIEST, whole.shape[-1])).values.exp()
            distributions[draw.untruncated] = whole.gather(-1, targets[:, None])[:, 0], likeliest
        chosen, likeliest = distributions[draw.untruncated]
        rows.append(chosen if draw == draw.untruncated else chosen - draw.kept_mass(likeliest).log())
    return torch.stack(rows)


def distribution(logits: Float[Tensor, "M V"], seen: Bool[Tensor, "M V"], draw: Draw) -> Float[Tensor, "M V"]:
    """Log-probabilities of all tokens before truncation."""
    if draw.repetition_penalty != 1:
        penalized = torch.where(
            logits > 0, logits / draw.repetition_penalty, logits * draw.repetition_penalty
        )
        logits = torch.where(seen, penalized, logits)
    return (logits / draw.temperature).log_softmax(-1)


def suspects(temperature: float, defaults: dict[str, Any]) -> list[tuple[str, Draw]]:
    """Other ways to draw, each with its one setting that differs from the requested temperature alone.

    The model's own defaults, from its `generation_config.json`, come first.
    """
    requested = Draw(temperature)
    return [
        (key, replace(requested, **{key: type(getattr(requested, key))(value)}))
        for key, usual in SUSPECTS.items()
        for value in dict.fromkeys([*([defaults[key]] if key in defaults else []), *usual])
        if value != getattr(requested, key)
    ]
