"""The contract of a reward, and the weighted sum of several."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_pl.types import Prompt, Sample

_logger = logging.getLogger(__name__)


class RewardError(RuntimeError):
    """A reward raised, or gave something that is not one finite number for each sample."""


class RewardFunction(ABC):
    """Scores finished responses; higher is better.

    Args:
        weight: factor of this reward in the total; 0 means that it is logged only.
        on_error: what an exception or a NaN does: `raise` stops the run with a message that shows the sample;
            `abstain` logs a warning and leaves the sample unscored.
    """

    def __init__(self, *, weight: float = 1.0, on_error: Literal["raise", "abstain"] = "raise") -> None:
        if not math.isfinite(weight):
            raise ValueError(f"weight is {weight}; it must be finite, 0 to only log the reward.")
        self.weight = weight
        self.on_error = on_error

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        """One finite number for each sample, or None where this reward abstains. A batch may mix prompts."""

    def can_score(self, prompt: Prompt) -> bool:  # noqa: ARG002 - for those that override it
        """False if the gold answer of this prompt is one that this reward can never read."""
        return True


class Verifier(RewardFunction):
    """A reward that compares the answer found in the response with the gold answer: 1 if right, 0 if wrong.

    It abstains where `can_score` is False. A response without an answer scores 0.
    """

    @abstractmethod
    def extract(self, response: str) -> str | None:
        """The answer of a response in a canonical spelling, None if it has none.

        Two responses with equal spelling gave the same answer, so majority voting counts spellings.
        """


@dataclass(kw_only=True)
class ScoredSamples:
    """The rewards of `N` samples, one by one and summed.

    Example: `by_name={"correct": [1.0, None], "short": [0.5, 0.2]}` with the weights 1 and 0.1 has
    `total=[1.05, 0.0]` and `scored=[True, False]`.
    """

    by_name: dict[str, list[float | None]]
    """The unweighted scores of each reward; None where it abstained."""
    total: Float[Tensor, "N"]
    """The weighted sum over rewards; 0 where the sample is unscored."""
    scored: Bool[Tensor, "N"]
    """False where a reward with non-zero weight abstained, so that the total is not known."""

    def metrics(self) -> dict[str, float]:
        """Means over the samples that have the number; a mean over no samples is left out.

        `rewards/<name>` over those on which the reward did not abstain, `rewards/<name>_abstained` (a
        fraction, only if above 0), `rollout/reward` and `rollout/reward_std` (population) over the scored.
        """
        metrics: dict[str, float] = {}
        for name, scores in self.by_name.items():
            given = [score for score in scores if score is not None]
            if given:
                metrics[f"rewards/{name}"] = math.fsum(given) / len(given)
            if len(given) < len(scores):
                metrics[f"rewards/{name}_abstained"] = 1 - len(given) / len(scores)
        if self.scored.any():
            total = self.total[self.scored]
            metrics["rollout/reward"] = total.mean().item()
            metrics["rollout/reward_std"] = total.std(correction=0).item()
        return metrics


def score_samples(rewards: Mapping[str, RewardFunction], samples: Sequence[Sample]) -> ScoredSamples:
    r"""The weighted sum of all rewards, `total_n = \sum_k weight_k * score_k(sample_n)`.

    A sample is unscored, and must stay out of group statistics, if any reward with non-zero weight abstains
    on it: its total is not known. Here we deviate from TRL, which sums the rewards that did answer (`nansum`)
    and so ranks a response that one judge skipped against responses judged in full. All may be unscored.

    Raises:
        RewardError: a reward with `on_error: raise` failed.
    """
    by_name = {name: _score_or_abstain(name, reward, samples) for name, reward in rewards.items()}
    total = torch.zeros(len(samples))
    scored = torch.ones(len(samples), dtype=torch.bool)
    for name, reward in rewards.items():
        if reward.weight != 0:
            scores = by_name[name]
            scored &= torch.tensor([score is not None for score in scores], dtype=torch.bool)
            total += reward.weight * torch.tensor([score or 0.0 for score in scores])
    return ScoredSamples(by_name=by_name, total=torch.where(scored, total, 0.0), scored=scored)


def _score_or_abstain(name: str, reward: RewardFunction, samples: Sequence[Sample]) -> list[float | None]:
    """The scores of one reward; a batch that fails is repeated sample by sample, to find the culprit."""
    try:
        return _checked_scores(reward, samples)
    except Exception as error:  # noqa: BLE001 - rewards are the user's code and may raise anything
        batch_error = error
    scores: list[float | None] = []
    for sample in samples:
        try:
            scores += _checked_scores(reward, [sample])
        except Exception as error:
            message = f"Reward {name!r} failed with {type(error).__name__}: {error} ({_describe(sample)})"
            if reward.on_error == "raise":
                raise RewardError(f"{message}; on_error: abstain would skip such samples.") from error
            _logger.warning("%s; it abstains.", message)
            scores.append(None)
    if reward.on_error == "raise":
        raise RewardError(
            f"Reward {name!r} failed on a batch of {len(samples)}, though on none of its samples alone, with "
            f"{type(batch_error).__name__}: {batch_error}."
        ) from batch_error
    return scores


def _checked_scores(reward: RewardFunction, samples: Sequence[Sample]) -> list[float | None]:
    scores = [None if score is None else float(score) for score in reward.score(samples)]
    if len(scores) != len(samples):
        raise ValueError(f"it gave {len(scores)} scores for {len(samples)} samples")
    for score in scores:
        if score is not None and not math.isfinite(score):
            raise ValueError(f"it gave the score {score}")
    return scores


def _describe(sample: Sample) -> str:
    texts = {"prompt": sample.prompt.text, "answer": sample.prompt.answer, "response": sample.response}
    return ", ".join(f"{name} {_shorten(text)!r}" for name, text in texts.items())


def _shorten(text: str, max_chars: int = 200) -> str:
    half = (max_chars - 5) // 2
    return text if len(text) <= max_chars else f"{text[:half]} ... {text[-half:]}"
