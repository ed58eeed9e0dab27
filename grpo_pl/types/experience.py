"""Sequences as the models read them, and what the learner makes of a rollout."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor

from grpo_pl.types.dialogue import Message, Stop

S = TypeVar("S", bound="Sequences")


@dataclass(kw_only=True)
class Sequences:
    """Token sequences as the models read them, cut into micro-batches by `select`."""

    token_ids: Int[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    temperature: float
    active: Bool[Tensor, "B"] | None = None
    """False on sequences that no term of the loss depends on: no pass reads them. None if all are read."""
    candidates: Int[Tensor, "B T K"] | None = None
    """Token ids, other choices for each token that are scored too; -1 where it has fewer. None for none."""
    renormalized: bool = False
    """Whether the candidates are the only choices that there were: log-probabilities and entropy are then
    those of the distribution over them."""

    @property
    def read(self) -> Bool[Tensor, "B T"]:
        """The response tokens of active sequences: metrics of the models are means over these."""
        return self.loss_mask if self.active is None else self.loss_mask & self.active[:, None]

    def among(self, rows: Sequence[int]) -> Sequence[int]:
        """The active rows, or the first row if none is: every rank must run every micro-batch."""
        if self.active is None:
            return rows
        active = self.active.tolist()
        return [row for row in rows if active[row]] or rows[:1]

    def select(self: S, rows: Sequence[int], **changes: Any) -> S:
        """The given rows of every tensor, without the columns of padding that none of them needs.

        Lists and dictionaries of what is no tensor, which describe the whole iteration, are left empty.
        `changes` are fields of the piece alone.
        """
        index = torch.as_tensor(rows, device=self.token_ids.device)
        width = 1 + int(self.loss_mask[index].any(0).nonzero().max())

        def cut(column: Tensor) -> Tensor:
            return column[index, :width] if column.ndim > 1 else column[index]

        pieces: dict[str, Any] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, Tensor):
                pieces[column.name] = cut(value)
            elif isinstance(value, dict):
                pieces[column.name] = {key: cut(v) for key, v in value.items() if isinstance(v, Tensor)}
            elif column.default_factory is not MISSING:
                pieces[column.name] = column.default_factory()
        return replace(self, **pieces | changes)


@dataclass(kw_only=True)
class TokenScores:
    """The models' scores of a batch of sequences; zero where `loss_mask` is False."""

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None = None
    """Entropy in nats of the distribution that token `t` was drawn from; None if not requested."""
    values: Float[Tensor, "B T"] | None = None
    """The critic's estimate before token `t` is chosen."""
    candidates: Float[Tensor, "B T K"] | None = None
    """The log-probabilities of the candidates, 0 where there is none; None without candidates."""
    candidate_ids: Int[Tensor, "B T K"] | None = None
    """The candidates, where the model that is asked has named them."""
    divergence: Float[Tensor, "B T"] | None = None
    """The distance from the teacher over the whole vocabulary, in nats; None without one."""
    reverse_kl: Float[Tensor, "B T"] | None = None
    """KL(policy || teacher) over the whole vocabulary, exact and without gradient; None without a teacher."""

    @classmethod
    def assemble(
        cls, parts: Sequence["TokenScores"], rows: Sequence[Sequence[int]], like: Float[Tensor, "N T"]
    ) -> "TokenScores":
        """The scores of all `[N, T]` tokens from those of micro-batches of the given rows; float32.

        Other rows are zero. Without any micro-batch there are log-probabilities alone, all zero.
        """

        def whole(name: str) -> Any:
            pieces = [getattr(part, name) for part in parts]
            if not pieces:
                return torch.zeros_like(like) if name == "logprobs" else None
            if pieces[0] is None:
                return None
            dtype = like.dtype if pieces[0].is_floating_point() else pieces[0].dtype
            out = like.new_zeros((*like.shape, *pieces[0].shape[2:]), dtype=dtype)
            for piece, where in zip(pieces, rows, strict=True):
                out[torch.tensor(where, device=out.device), : piece.shape[1]] = piece.to(dtype)
            return out

        return cls(**{field.name: whole(field.name) for field in fields(cls)})


def only_here(values: Tensor) -> Tensor:
    """The sum over ranks of a run with one rank."""
    return values


@dataclass(kw_only=True)
class Feedback:
    """The rewards of an iteration's responses on this rank: everything that an advantage estimator sees.

    Life cycle: made by the learner from rewards and scores, read by the advantage estimator. All responses of
    a group are on one rank.
    """

    rewards: Float[Tensor, "N T"]
    """The weighted reward of the task earned at each token: outcome rewards stand on the last response token,
    process rewards where a step ends. 0 elsewhere. A linear estimator sees them less `kl_cost`."""
    step_ends: Bool[Tensor, "N T"]
    """True where a step ends that a process reward has scored (its score may be 0)."""
    scored: Bool[Tensor, "N"]
    """False where the reward is unknown: such a response enters no statistic and its advantage is 0."""
    loss_mask: Bool[Tensor, "N T"]
    group_ids: Int[Tensor, "N"]
    truncated: Bool[Tensor, "N"]
    by_name: dict[str, Float[Tensor, "N"]] = field(default_factory=dict)
    """The weighted total of each reward over a response; 0 where it abstained."""
    weights: dict[str, float] = field(default_factory=dict)
    """The weight of each reward of `by_name`; never 0."""
    values: Float[Tensor, "N T"] | None = None
    """The critic's estimate before each token was chosen; None where there is no critic."""
    greedy: Float[Tensor, "N"] | None = None
    """The reward of the greedy response to the same prompt, NaN if unknown; None if not requested."""
    sum_over_ranks: Callable[[Tensor], Tensor] = only_here
    """The sum of a tensor over all ranks; collective."""
    old_logprobs: Float[Tensor, "N T"] | None = None
    """The policy's log-probabilities before the first update; None before the models have scored."""
    ref_logprobs: Float[Tensor, "N T"] | None = None
    """The reference's, at the same temperature; None where nothing asks for them."""
    kl_cost: Float[Tensor, "N T"] | None = None
    """The cost of a KL in the reward at each token, in units of reward, 0 outside of `loss_mask`; None
    without such a KL. `AdvantageEstimator.credit` takes it off."""

    @property
    def outcome(self) -> Float[Tensor, "N"]:
        """The whole reward of each response."""
        return self.rewards.sum(-1)

    @property
    def paid(self) -> Float[Tensor, "N T"]:
        """The reward at each token less the cost of a KL in the reward."""
        return self.rewards if self.kl_cost is None else self.rewards - self.kl_cost


class Credit(NamedTuple):
    """The result of an advantage estimator: zero where the loss mask is False."""

    advantages: Float[Tensor, "N T"]
    returns: Float[Tensor, "N T"] | None
    """The critic's regression target; None where there is no critic."""


@dataclass(kw_only=True)
class SampleRecord:
    """One response with its rewards, for tables and files that people read."""

    prompt: str
    messages: list[dict[str, str]] = field(default_factory=list)
    """The conversation that ends with `prompt`; empty where that is all."""
    answer: str
    response: str
    response_tokens: int
    truncated: bool
    rewards: dict[str, float | None]
    reward: float | None
    advantage: float | None
    """None if the response is not learned from."""
    stop: Stop | None = None
    """Why the episode ended; None where there is no environment."""
    transcript: list[Message] = field(default_factory=list)
    """The whole conversation of the episode."""


@dataclass(kw_only=True)
class Experience(Sequences):
    """A rollout with everything the update needs. A minibatch and a micro-batch are the same type.

    Life cycle: made by the learner from a rollout, cut into minibatches by the loop, consumed by
    `training_step`.
    """

    sampling_logprobs: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    """The trainer's log-probabilities before the first update on this rollout."""
    advantages: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"] | None = None
    returns: Float[Tensor, "B T"] | None = None
    old_values: Float[Tensor, "B T"] | None = None
    weights: Float[Tensor, "B T"] | None = None
    """Factors of the policy loss of each token: the correction for the mismatch between engine and trainer.
    Without gradient; None for 1."""
    kept: Bool[Tensor, "B T"] | None = None
    """False on response tokens that a mask takes out of the loss and its denominators; None without masks."""
    has_old_logprobs: Bool[Tensor, "B"] | None = None
    """False on sequences whose `old_logprobs` are still zeros: they are read once, in the rollout's first
    optimizer step, whose forward gives them, for its weights are those of the old policy. None without such
    sequences."""
    prompt_weights: Float[Tensor, "B"] | None = None
    """The weight of each counted token of a sequence where every prompt counts the same, before the mean over
    sequences: `functional.prompt_weights`."""
    num_tokens: int = 0
    """Counted tokens of the optimizer step, over all micro-batches and ranks; 0 before these are cut."""
    num_sequences: int = 0
    """Sequences with a counted token in the optimizer step, likewise."""
    candidate_logprobs: Float[Tensor, "B T K"] | None = None
    """The sampler's log-probabilities of the `candidates`, in nats, where these are its likeliest tokens."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The iteration's metrics; only its first micro-batch carries them."""
    records: list[SampleRecord] = field(default_factory=list)
    """The iteration's responses; only its first micro-batch carries them."""
    all_tokens: int = 0
    """Response tokens of the optimizer step, whatever masks say, over all micro-batches and ranks."""
    all_sequences: int = 0
    """Sequences of the optimizer step with a response token, likewise."""
    all_prompt_weights: Float[Tensor, "B"] | None = None
    """`prompt_weights` where every response token counts; None without masks."""
    prepared: dict[object, Shaped[Tensor, "B T"]] = field(default_factory=dict)
    """What terms of the loss have computed of the whole rollout, by the term: `LossTerm.prepare`."""
    teacher_logprobs: Float[Tensor, "B T K"] | None = None
    """The reference's log-probabilities of `candidates`, its own most probable tokens; None without them."""
    stands_for: Float[Tensor, "B"] | None = None
    """How many tokens each read token of a sequence stands for in metrics, where only a sample of the
    sequences without an advantage is read; None for 1. The loss does not know of it."""

    episodes: Int[Tensor, "B"] | None = None
    """Rows of one episode share it and stand in one micro-batch: they are one sequence to the loss. None
    where each row is one."""

    def of_sequences(self, numbers: Num[Tensor, "B"]) -> Num[Tensor, "B"]:
        """At each row the sum over all rows of its sequence."""
        if self.episodes is None:
            return numbers
        owner = torch.unique(self.episodes, return_inverse=True)[1]
        return torch.zeros_like(numbers).index_add(0, owner, numbers)[owner]

    @property
    def counted(self) -> Bool[Tensor, "B T"]:
        """The response tokens that the loss sums over and its denominators count."""
        return self.loss_mask if self.kept is None else self.loss_mask & self.kept

    @property
    def unmasked(self) -> "Experience":
        """The same with every response token counted, as the critic learns from it; itself without masks."""
        if self.kept is None:
            return self
        return replace(
            self,
            kept=None,
            num_tokens=self.all_tokens,
            num_sequences=self.all_sequences,
            prompt_weights=self.all_prompt_weights,
        )

    @property
    def numbers(self) -> dict[str, Tensor]:
        """Every tensor of floating-point numbers by its name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: v for name, v in named if isinstance(v, Tensor) and v.is_floating_point()}


class TokenLoss(NamedTuple):
    """A loss for every token, unmasked and unreduced, and its metrics, logged as token means."""

    loss: Float[Tensor, "B T"]
    metrics: dict[str, Float[Tensor, "B T"]]
