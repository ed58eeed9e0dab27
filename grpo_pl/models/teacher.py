"""A policy's distance from a teacher over the whole vocabulary, without the logits of a whole batch."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from grpo_pl.functional import reverse_kl
from grpo_pl.models.heads import Head, LayerHead
from grpo_pl.models.logprobs import Entropy, entropy_of, in_chunks
from grpo_pl.system.refusal import ConfigError

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Of log-probabilities `[M V]` of student and teacher, for each of the M tokens."""


class Teacher(NamedTuple):
    """What a teacher says of the tokens of a micro-batch: H numbers a token instead of V."""

    hidden: Float[Tensor, "M H"]
    """Its states before each masked token; without gradient."""
    head: Head
    """The way from these to its logits."""
    divergence: Divergence


class TaughtScores(NamedTuple):
    """A language model's scores of chosen tokens and its distance from a teacher, in nats, float32."""

    logprobs: Float[Tensor, "M"]
    entropy: Float[Tensor, "M"]
    divergence: Float[Tensor, "M"]
    """The teacher's; with gradient."""
    reverse_kl: Float[Tensor, "M"]
    """KL(student || teacher), exact; without gradient."""


def taught_logprobs(
    hidden: Float[Tensor, "M H"],
    targets: Int[Tensor, "M"],
    head: Head,
    temperature: float,
    chunk_tokens: int,
    entropy: Entropy | None,
    teacher: Teacher,
) -> TaughtScores:
    """Scores with gradient: at most `chunk_tokens` rows of both models' logits exist at once.

    A chunk is computed again in the backward. Where one model's embeddings are padded to more rows, the sums
    go over the rows that both have; each distribution is normalised over its own.
    """

    def score(h: Tensor, target: Tensor, of_teacher: Tensor) -> tuple[Tensor, ...]:
        distribution = head.logits(h, temperature).log_softmax(-1)
        with torch.no_grad():
            taught = teacher.head.logits(of_teacher, temperature).log_softmax(-1)
        both = min(distribution.shape[-1], taught.shape[-1])
        student, taught = distribution[:, :both], taught[:, :both]
        chosen = distribution.gather(-1, target[:, None])[:, 0]
        divergence = teacher.divergence(student, taught)
        with torch.no_grad():
            distance = (
                divergence.detach() if teacher.divergence is reverse_kl else reverse_kl(student, taught)
            )
        return chosen, entropy_of(distribution, entropy), divergence, distance

    return TaughtScores(*in_chunks(score, chunk_tokens, hidden, targets, teacher.hidden))


def lasting(head: Head, model: nn.Module) -> Head:
    """A head that can be used after the model's forward: a copy where weights are sharded then (FSDP2).

    Called inside of the forward, where they are whole.
    """
    if not isinstance(model, FSDPModule):
        return head
    if not isinstance(head, LayerHead):
        raise ConfigError(
            "model.kl TeacherKL over the whole vocabulary needs a reference whose logits come from one "
            "layer, where it is sharded: set model.kl.top_k, for instance to 64"
        )
    return LayerHead(copy.deepcopy(head.layer), head.scale, head.cap)
