"""Objectives of reward models: how a row of data is read, and the loss over its scores."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import pad_rows
from grpo_pl.models.loading import RewardKind
from grpo_pl.models.reward_model import ResponseEncoder
from grpo_pl.prompts.sources import Question
from grpo_pl.system.refusal import ArgumentError, ConfigError


@dataclass(kw_only=True)
class LabeledResponse:
    """A response as a reward model reads it, with its labels."""

    token_ids: list[int]
    judged: list[int]
    """The tokens whose score is learned, in ascending order: the last one, or where steps end."""
    labels: list[float]
    """Labels of the judged tokens in [0, 1]: whether they are right, or how often."""


@dataclass(kw_only=True)
class LabeledBatch:
    """A micro-batch of examples; `B` responses, padded on the right to `T` tokens."""

    token_ids: Int[Tensor, "B T"]
    lengths: Int[Tensor, "B"]
    judged: Bool[Tensor, "B T"]
    labels: Float[Tensor, "B T"]
    """0 where `judged` is False."""

    @classmethod
    def collate(cls, examples: Sequence[Sequence[LabeledResponse]]) -> "LabeledBatch":
        """The responses of all examples, those of one example side by side."""
        responses = [response for example in examples for response in example]
        lengths = [len(response.token_ids) for response in responses]
        judged = torch.zeros(len(responses), max(lengths), dtype=torch.bool)
        labels = torch.zeros(judged.shape)
        for row, response in enumerate(responses):
            judged[row, response.judged] = True
            labels[row, response.judged] = torch.tensor(response.labels)
        token_ids = pad_rows([torch.tensor(response.token_ids) for response in responses], max(lengths))
        return cls(token_ids=token_ids, lengths=torch.tensor(lengths), judged=judged, labels=labels)


@dataclass(kw_only=True)
class ScoredBatch:
    """The loss and the predictions of a micro-batch."""

    loss: Float[Tensor, "E"]
    """The loss of each example, in nats."""
    probability: Float[Tensor, "K"]
    """The model's probability of each labelled event; without gradient."""
    truth: Float[Tensor, "K"]
    """Whether the event happened, or how often."""


class RewardObjective(ABC):
    """One way to learn a reward model from labelled responses."""

    kind: RewardKind
    """Whether it trains a reward model of whole responses or of steps."""

    @abstractmethod
    def read(self, row: Question, encode: ResponseEncoder) -> list[LabeledResponse]:
        """The responses of one row of data, one example; ConfigError if a column is missing or wrong."""

    @abstractmethod
    def __call__(self, scores: Float[Tensor, "B T"], batch: LabeledBatch) -> ScoredBatch:
        """The loss over the scores after each token; the gradient flows through `scores`."""


@final
class BradleyTerry(RewardObjective):
    r"""Pairs: of two responses to a prompt, which one is better.

    `-log sigmoid(score(chosen) - score(rejected))`, the likelihood of Bradley and Terry (1952) for one
    comparison, as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, eq. 1, with one pair a prompt). It
    fixes differences of scores alone; `center` pins their zero (Eisenstein et al. 2023, arXiv:2312.09244,
    eq. 5): `center * (score(chosen) + score(rejected))^2` is added.

    Args:
        chosen: The column of the better response.
        rejected: The column of the worse one.
        center: Weight of the centering term; 0 leaves the zero free.
    """

    kind: RewardKind = "outcome"

    def __init__(self, chosen: str = "chosen", rejected: str = "rejected", center: float = 0.0) -> None:
        if not 0 <= center < math.inf:
            raise ArgumentError(f"center={center}: expected 0 or more")
        self.columns, self.center = (chosen, rejected), center

    @override
    def read(self, row: Question, encode: ResponseEncoder) -> list[LabeledResponse]:
        pair = []
        for column, label in zip(self.columns, (1.0, 0.0), strict=True):
            response = column_of(row, column)
            if not isinstance(response, str):
                raise ConfigError(
                    f"column {column!r} holds {response!r:.60}, expected the text of a response"
                )
            token_ids = encode(row.messages or row.text, response).token_ids
            pair.append(LabeledResponse(token_ids=token_ids, judged=[len(token_ids) - 1], labels=[label]))
        return pair

    @override
    def __call__(self, scores: Float[Tensor, "B T"], batch: LabeledBatch) -> ScoredBatch:
        chosen, rejected = scores[batch.judged].view(-1, 2).unbind(-1)
        margin = chosen - rejected
        fixed = margin.detach()
        return ScoredBatch(
            loss=F.softplus(-margin) + self.center * (chosen + rejected) ** 2,
            probability=torch.cat([fixed, -fixed]).sigmoid(),  # a pair is a comparison either way round
            truth=torch.cat([torch.ones_like(fixed), torch.zeros_like(fixed)]),
        )


@final
class StepLabels(RewardObjective):
    r"""Steps: whether each step of a response is right.

    The binary cross-entropy between the sigmoid of the score after a step and its label, averaged over the
    steps of a response, then over responses, so that long responses weigh as much as short ones (Lightman et
    al. 2023, arXiv:2305.20050; labels in [0, 1] are the soft estimates of Math-Shepherd, Wang et al. 2024,
    arXiv:2312.08935, whose loss sums over steps).

    Args:
        completions: The column with the list of steps, in TRL's layout.
        labels: The column with their labels: true and false, or numbers from 0 to 1.
        separator: Text between two steps, if the steps do not contain it.
    """

    kind: RewardKind = "process"

    def __init__(self, completions: str = "completions", labels: str = "labels", separator: str = "") -> None:
        self.completions, self.labels, self.separator = completions, labels, separator

    @override
    def read(self, row: Question, encode: ResponseEncoder) -> list[LabeledResponse]:
        steps, labels = column_of(row, self.completions), column_of(row, self.labels)
        if not isinstance(steps, list) or not all(isinstance(step, str) and step for step in steps):
            raise ConfigError(f"column {self.completions!r} holds {steps!r:.60}, expected a list of steps")
        known = isinstance(labels, list) and all(isinstance(n, int | float) and 0 <= n <= 1 for n in labels)
        if not known or not steps or len(labels) != len(steps):
            raise ConfigError(
                f"column {self.labels!r} holds {labels!r:.60}, expected a label in [0, 1] for each of the "
                f"{len(steps)} steps"
            )
        texts = [step + self.separator for step in steps[:-1]] + [steps[-1]]
        ends = [len("".join(texts[: i + 1])) for i in range(len(texts))]
        encoded = encode(row.messages or row.text, "".join(texts))
        label_at = {encoded.last_token(end): float(n) for end, n in zip(ends, labels, strict=True)}
        return [LabeledResponse(token_ids=encoded.token_ids, judged=[*label_at], labels=[*label_at.values()])]

    @override
    def __call__(self, scores: Float[Tensor, "B T"], batch: LabeledBatch) -> ScoredBatch:
        each = F.binary_cross_entropy_with_logits(scores, batch.labels, reduction="none")
        steps = batch.judged.sum(-1)
        return ScoredBatch(
            loss=torch.where(batch.judged, each, 0.0).sum(-1) / steps,
            probability=scores[batch.judged].detach().sigmoid(),
            truth=batch.labels[batch.judged],
        )


def column_of(row: Question, column: str) -> Any:
    """The value in a column of a row, besides the prompt; ConfigError without such a column."""
    if column not in row.metadata:
        has = ", ".join(repr(name) for name in row.metadata) or "none"
        raise ConfigError(f"there is no column {column!r}; its columns besides the prompt: {has}")
    return row.metadata[column]
