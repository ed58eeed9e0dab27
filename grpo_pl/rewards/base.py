"""The contract of a reward, and the weighted sum of several."""

import logging
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, SupportsFloat

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.functional import outcome_rewards
from grpo_pl.models.builder import Place
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Sample, ScoredSamples, StepScore

log = logging.getLogger(__name__)
LARGEST_SCORE = torch.finfo(torch.float32).max


class RewardError(RuntimeError):
    """A reward raised, or gave something that is not one finite number for each sample."""


class RewardFunction(ABC):
    """Scores finished responses; higher is better.

    Args:
        weight: Factor of this reward in the total; 0 means that it is logged only.
        on_error: What an exception or a NaN does: `raise` stops the run with a message that shows the sample;
            `abstain` logs a warning and leaves the sample unscored.
    """

    needs_environment: ClassVar[bool] = False
    """Whether it reads what an environment pays."""

    def __init__(self, *, weight: float = 1.0, on_error: Literal["raise", "abstain"] = "raise") -> None:
        if not math.isfinite(weight):
            raise ArgumentError(f"weight={weight}: expected a finite number, 0 to only log the reward")
        self.weight = weight
        self.on_error = on_error

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        """One finite number for each sample, or None where this reward abstains. A batch may mix prompts."""

    def can_score(self, prompt: Prompt) -> bool:  # noqa: ARG002 - for those that override it
        """False if this reward can never read the gold answer of this prompt."""
        return True

    def check_columns(self, columns: frozenset[str]) -> None:  # noqa: B027 - most need none
        """Refuse data without a column that this reward needs; the question's is not among them."""

    def build(self, place: Place) -> None:  # noqa: B027 - most have nothing to load
        """Load what the reward holds, a model for instance; called once, inside `configure_model`."""

    @property
    def failures(self) -> Mapping[str, int]:
        """Samples that its worker processes failed on so far, by kind; empty without workers."""
        return {}

    @property
    def held_model(self) -> nn.Module | None:
        """The model that scores, once it is built; None for most."""
        return None

    @property
    def tokens_at_once(self) -> int:
        """The most tokens that its model reads at once; 0 without one."""
        return 0


class ProcessReward(RewardFunction):
    """Scores every step of a response; the score of the whole response is the sum over its steps."""

    @abstractmethod
    def score_steps(self, samples: Sequence[Sample]) -> Sequence[Sequence[StepScore] | None]:
        """The steps of each sample in the order in which they end, or None where this reward abstains."""

    @override
    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return [
            None if steps is None else math.fsum(step.score for step in steps)
            for steps in self.score_steps(samples)
        ]


class Verifier(RewardFunction):
    """A reward that compares the answer found in the response with the gold answer: 1 if right, 0 if wrong.

    It abstains where `can_score` is False. A response without an answer scores 0.
    """

    @abstractmethod
    def extract(self, response: str) -> str | None:
        """The answer of a response in a canonical spelling, None without an answer.

        Majority voting counts spellings: equal spellings are the same answer.
        """

    def right_response(self, prompt: Prompt) -> str | None:
        """A response that deserves 1: the gold answer; None where that is not a response."""
        return prompt.answer or None


def score_samples(rewards: Mapping[str, RewardFunction], samples: Sequence[Sample]) -> ScoredSamples:
    r"""The weighted sum of all rewards, `total_n = \sum_k weight_k * score_k(sample_n)`.

    A sample is unscored, and stays out of group statistics, if any reward with non-zero weight abstains on
    it: its total is unknown. TRL deviates: it sums the rewards that did answer (`nansum`), and so ranks a
    response that one judge skipped against responses judged in full. All samples may be unscored.

    What the end of an episode does to its rewards, `Sample.outcome`, is done to those with a weight.

    Raises:
        RewardError: A reward with `on_error: raise` failed.
    """
    by_name: dict[str, list[float | None]] = {}
    weighted: dict[str, Tensor] = {}
    steps: list[list[StepScore]] = [[] for _ in samples]
    failures: dict[str, dict[str, int]] = {}
    scored = torch.ones(len(samples), dtype=torch.bool)
    for name, reward in rewards.items():
        before = dict(reward.failures)
        scorer = declared_scores if reward.weight != 0 else score_or_abstain
        raw_scores = scorer(f"Reward {name!r}", reward, samples)
        failures[name] = {kind: count - before[kind] for kind, count in reward.failures.items()}
        scores = by_name[name] = [_outcome(score) for score in raw_scores]
        if reward.weight != 0:
            scored &= torch.tensor([score is not None for score in scores], dtype=torch.bool)
            weighted[name] = reward.weight * torch.tensor([score or 0.0 for score in scores])
            for row, score in enumerate(raw_scores):
                if isinstance(score, Sequence):
                    steps[row] += [replace(step, score=reward.weight * step.score) for step in score]
    weighted = {name: torch.where(scored, scores, 0.0) for name, scores in weighted.items()}
    whole = [scores for name, scores in weighted.items() if not isinstance(rewards[name], ProcessReward)]
    zeros = torch.zeros(len(samples))
    return ScoredSamples(
        by_name=by_name,
        total=sum(weighted.values(), zeros),
        weighted=weighted,
        outcome=sum(whole, zeros) if whole else None,
        steps=steps,
        scored=scored,
        failures=failures,
        attempts=len(samples),
    )


def token_rewards(
    scored: ScoredSamples, samples: Sequence[Sample], loss_mask: Bool[Tensor, "N T"]
) -> tuple[Float[Tensor, "N T"], Bool[Tensor, "N T"]]:
    """The reward earned at each token, and where a step ends.

    Outcomes pay on the last response token, a step on the token that it names or, if it names none, on the
    one that completes its last character.
    """
    outcome = torch.zeros(len(samples)) if scored.outcome is None else scored.outcome
    rewards = outcome_rewards(outcome, loss_mask.cpu())
    ends = torch.zeros(loss_mask.shape, dtype=torch.bool)
    for row, (steps, sample) in enumerate(zip(scored.steps, samples, strict=True)):
        columns = loss_mask[row].nonzero()[:, 0].tolist()
        for step in steps if scored.scored[row] else ():
            token = bisect_left(sample.token_ends, step.end) if step.token is None else step.token
            column = columns[min(token, len(columns) - 1)]
            rewards[row, column] += step.score
            ends[row, column] = True
    return rewards, ends


def earning_tokens(
    scored: ScoredSamples, step_ends: Bool[Tensor, "N T"], loss_mask: Bool[Tensor, "N T"]
) -> Bool[Tensor, "N T"]:
    """True on tokens that earn a reward, even one of 0: step ends, and the last where outcomes are paid."""
    if scored.outcome is None:
        return step_ends
    return step_ends | (outcome_rewards(scored.scored.float(), loss_mask.cpu()) != 0)


Score = float | None | Sequence[StepScore]
"""A reward's score of a sample: a number, None where it abstains, or the scores of its steps."""


def _outcome(score: Score) -> float | None:
    return math.fsum(step.score for step in score) if isinstance(score, Sequence) else score


def declared_scores(name: str, reward: RewardFunction, samples: Sequence[Sample]) -> list[Score]:
    """The scores of one reward after what the end of each episode does to them.

    `zero` makes the score and those of steps 0, known though the reward abstains; for `abstain` the reward is
    not asked.
    """
    asked = [sample for sample in samples if sample.outcome != "abstain"]
    scores = iter(score_or_abstain(name, reward, asked))
    return [
        None if sample.outcome == "abstain" else made_zero(next(scores), zero=sample.outcome == "zero")
        for sample in samples
    ]


def made_zero(score: Score, *, zero: bool) -> Score:
    """The score, or the same score of 0 if it shall be."""
    if not zero:
        return score
    return [replace(step, score=0.0) for step in score] if isinstance(score, Sequence) else 0.0


def score_or_abstain(name: str, reward: RewardFunction, samples: Sequence[Sample]) -> list[Score]:
    """The scores of one reward, which messages call `name`, an error treated as its `on_error` says.

    A batch that fails is repeated sample by sample, to find the culprit.
    """
    try:
        return _checked_scores(reward, samples)
    except RewardError as error:  # names its sample
        raise RewardError(f"{name} failed: {error}") from error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        batch_error = error
    scores: list[Score] = []
    errors: list[tuple[Sample, BaseException]] = []
    for sample in samples:
        try:
            scores += _checked_scores(reward, [sample])
        except (Exception, SystemExit) as error:  # noqa: BLE001
            scores.append(None)
            errors.append((sample, error))
            if reward.on_error == "abstain":
                log.warning("%s; it abstains.", _message(name, sample, error))
        kinds = [type(error).__name__ for _, error in errors]
        if errors and reward.on_error == "raise" and (len(errors) < len(scores) or len(set(kinds)) > 1):
            break
    if reward.on_error == "abstain":
        return scores
    if errors:
        sample, first = errors[0]
        raise RewardError(f"{_message(name, sample, first)}; {advice(kinds, len(samples))}") from first
    raise RewardError(
        f"{name} failed on a batch of {len(samples)}, though on none of its samples alone, with "
        f"{type(batch_error).__name__}: {batch_error}."
    ) from batch_error


def _message(name: str, sample: Sample, error: BaseException) -> str:
    reason = _shorten(f"{type(error).__name__}: {error}", 500)
    return f"{name} failed with {reason} ({describe(sample)})"


def advice(kinds: Sequence[str], samples: int) -> str:
    """What to do about a batch of which as many samples failed as there are kinds of failures."""
    if len(kinds) == samples > 1 and len(set(kinds)) == 1:
        return (
            f"so do all {samples} samples of the batch, and on_error: abstain would skip every one: correct "
            "the reward, or the data that it reads."
        )
    return "on_error: abstain would skip such samples."


def _checked_scores(reward: RewardFunction, samples: Sequence[Sample]) -> list[Score]:
    raw_scores = reward.score_steps(samples) if isinstance(reward, ProcessReward) else reward.score(samples)
    scores: list[Score] = [
        list(score)
        if isinstance(score, Sequence) and not isinstance(score, str)
        else as_number(score, "it gave")
        for score in raw_scores
    ]
    if len(scores) != len(samples):
        raise ValueError(f"it gave {len(scores)} scores for {len(samples)} samples")
    for score in scores:
        numbers = [step.score for step in score] if isinstance(score, Sequence) else [score]
        for number in numbers:
            if number is not None and not abs(number) <= LARGEST_SCORE:
                raise ValueError(f"it gave the score {number}")
    return scores


def as_number(value: Any, giver: str) -> float | None:
    """A score as a float: a real number of Python or NumPy or a tensor without dimensions; None abstains."""
    if value is None or isinstance(value, float):
        return value
    is_real = isinstance(value, SupportsFloat) and not isinstance(value, str | np.complexfloating)
    if is_real and not np.ndim(value):
        return float(value)
    raise TypeError(
        f"{giver} {_shorten(repr(value))}, a {type(value).__name__} and not a number: expected a number, or "
        "None to abstain"
    )


def describe(sample: Sample) -> str:
    """A sample as a message shows it: prompt, answer and response, shortened."""
    texts = {"prompt": sample.prompt.text, "answer": sample.prompt.answer, "response": sample.response}
    return ", ".join(f"{name} {_shorten(text)!r}" for name, text in texts.items())


def _shorten(text: str, max_chars: int = 200) -> str:
    half = (max_chars - 5) // 2
    return text if len(text) <= max_chars else f"{text[:half]} ... {text[-half:]}"
