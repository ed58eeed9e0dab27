"""How the losses of tokens become the loss of an optimizer step."""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from grpo_pl.system.refusal import check_at_least
from grpo_pl.types import Experience


class Aggregation(ABC):
    """How the losses of tokens become the loss of an optimizer step.

    Each micro-batch gives its *share*: the shares of all micro-batches and ranks add up to the objective of
    the whole step. So cutting a batch into more micro-batches, or spreading it over more ranks, changes
    nothing. The share is linear in the losses, so that the terms of an objective can be added up after it.
    """

    @abstractmethod
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        """This micro-batch's share, by the batch's counts of tokens and sequences of the whole step."""


def _masked_sum(loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    return torch.where(mask, loss, 0.0).sum(-1)


@final
class TokenMean(Aggregation):
    """The mean over all response tokens of the step: each counts the same.

    The token-level loss of DAPO, arXiv:2503.14476, section 3.3, as verl has it, in which it was run. Its
    eq. 8 and 12 divide by the tokens of one prompt's responses: read to the letter, they are `PromptMean`.
    """

    @override
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        return _masked_sum(loss, batch.counted).sum() / max(batch.num_tokens, 1)


@final
class SequenceMean(Aggregation):
    """The mean over sequences of the mean over their tokens: each response counts the same.

    DeepSeekMath, arXiv:2402.03300, eq. 3. Of the sequences with a counted token: those that masks
    leave out whole are not divided by (TRL divides by all).
    """

    @override
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        tokens = batch.of_sequences(batch.counted.sum(-1))
        return (_masked_sum(loss, batch.counted) / tokens.clamp(min=1)).sum() / max(batch.num_sequences, 1)


@final
class ConstantLength(Aggregation):
    """The sum over tokens divided by a constant number of tokens a sequence (Dr. GRPO, arXiv:2503.20783).

    The divisor is `length` times all sequences of the step, also those without an advantage or without a
    counted token: masking half of the responses halves the loss, as in TRL's `dr_grpo`.

    Args:
        length: The constant, in tokens; the paper takes the token limit of a response.
    """

    def __init__(self, length: int) -> None:
        check_at_least(1, length=length)
        self.length = length

    @override
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        return _masked_sum(loss, batch.counted).sum() / (max(batch.all_sequences, 1) * self.length)


@final
class PromptMean(Aggregation):
    """The mean over prompts of the mean over all tokens of their responses: each prompt counts the same.

    The "prompt average" of ScaleRL, arXiv:2510.13786, section 3.2. Over the minibatches of a rollout on
    average: each token weighs what `functional.prompt_weights` says, whether the other responses to its
    prompt are in the same minibatch or not. With `data.keep_groups` they are, and the mean is that over the
    prompts of the step. Prompts without a counted token do not count.
    """

    @override
    def __call__(self, loss: Float[Tensor, "B T"], batch: Experience) -> Float[Tensor, ""]:
        assert batch.prompt_weights is not None, "the learner gives them"
        weighted = _masked_sum(loss, batch.counted) * batch.prompt_weights
        return weighted.sum() / max(batch.num_sequences, 1)
