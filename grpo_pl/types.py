"""The vocabulary of the RL loop, in the order in which data flows through it.

Dimensions, used in every shape of the project:

    P   prompts of one iteration on this data-parallel rank
    G   responses sampled for each prompt (the group)
    N   sequences, N = P * G, the G responses of one prompt side by side
    B   sequences of one micro-batch, B <= N
    T   padded sequence length: prompt, then response, then padding on the right
    V   vocabulary

Every per-token tensor is `[N, T]` and aligned with `token_ids`: entry `[n, t]` speaks about token `t` given
the tokens before it. Padding stands on the right, so under causal attention no token ever sees it and no
attention mask is needed.

Example, one prompt `[5, 6]` with the two responses `[7, 2]` and `[8]`:

    token_ids   [[5, 6, 7, 2], [5, 6, 8, 0]]
    loss_mask   [[0, 0, 1, 1], [0, 0, 1, 0]]
    group_ids   [0, 0]
"""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

S = TypeVar("S", bound="Sequences")


@dataclass(kw_only=True)
class Prompt:
    """One question, as the engine reads it: made by the DataModule, kept by the rollout, read by rewards.

    Example: `Prompt(token_ids=[5, 6], text="What is 2 + 3?", answer="5", seed=17)`.
    """

    token_ids: list[int]
    text: str
    """The question in words, without the chat template, for rewards and for people."""
    answer: str
    """The gold answer, as the data set spells it. Empty where the task has none."""
    messages: list[dict[str, str]] = field(default_factory=list)
    """The whole conversation that ends with `text`, each message with `role` and `content`."""
    opened: str = ""
    r"""What the prompt has opened for the response, such as `<think>\n`: the response goes on from there."""
    templated: bool = True
    """Whether a chat template holds the conversation; False for plain text."""
    gold: dict[str, Any] = field(default_factory=dict, compare=False)
    """The gold answer as the data has it, by the name of its column; empty where `answer` alone is known."""
    metadata: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    """Response `g` is sampled with `functional.derive_seed(seed, g)`; unique to the visit."""


@dataclass(kw_only=True)
class Sample:
    """One response to one prompt: everything that a reward sees."""

    prompt: Prompt
    response: str
    response_tokens: int
    truncated: bool
    """True if the response was cut at the token limit, False if the model ended it."""
    token_ends: list[int] = field(default_factory=list)
    """Where each token's text ends in `response`, in characters; empty where the engine does not know."""
    tokens: tuple[Int[Tensor, "T"], Bool[Tensor, "T"]] | None = field(default=None, compare=False, repr=False)
    """Its rows of the rollout's `token_ids` and `loss_mask`; None where they are not known."""


@dataclass(frozen=True)
class StepScore:
    """The score of one step of a response."""

    end: int
    """Where the step ends in the response, in characters (exclusive)."""
    score: float


@dataclass(kw_only=True)
class ScoredSamples:
    """The rewards of `N` samples, one by one and summed.

    Life cycle: made by the rewards from the samples of a rollout, read by the reward stage.

    Example: `by_name={"correct": [1.0, None], "short": [0.5, 0.2]}` with the weights 1 and 0.1 has
    `total=[1.05, 0.0]` and `scored=[True, False]`.
    """

    by_name: dict[str, list[float | None]]
    """The unweighted scores of each reward; None where it abstained."""
    total: Float[Tensor, "N"]
    """The weighted sum over rewards; 0 where the sample is unscored."""
    weighted: dict[str, Float[Tensor, "N"]]
    """The weighted scores of each reward with a weight other than 0; 0 where the sample is unscored."""
    outcome: Float[Tensor, "N"] | None
    """The part of the total that is paid for whole responses; None where all rewards are process rewards."""
    steps: list[list[StepScore]]
    """The weighted scores of the steps of each sample: the other part of the total."""
    scored: Bool[Tensor, "N"]
    """False where a reward with non-zero weight abstained, so that the total is unknown."""
    failures: dict[str, dict[str, int]] = field(default_factory=dict)
    """Failures of worker processes by reward and kind, counted in samples; out of `attempts`."""
    attempts: int = 0
    """Samples that were scored: more than `N` where dynamic sampling replaced some."""


@dataclass(kw_only=True)
class Rollout:
    """An engine's `G` responses to each of `P` prompts; not changed after the engine has returned it."""

    token_ids: Int[Tensor, "N T"]
    loss_mask: Bool[Tensor, "N T"]
    """True on the tokens that the policy sampled, the end-of-sequence token included; column 0 is always
    False."""
    sampling_logprobs: Float[Tensor, "N T"]
    """The engine's log-probability of each sampled token in nats, at `temperature`; 0 elsewhere."""
    group_ids: Int[Tensor, "N"]
    prompts: list[Prompt]
    """The prompt of each sequence: length `N`, each prompt `G` times."""
    responses: list[str]
    truncated: Bool[Tensor, "N"]
    token_ends: list[list[int]]
    """Where the text of each token ends in each response, in characters."""
    policy_version: int
    """Optimizer steps that the sampling policy had taken."""
    temperature: float
    greedy: list[Sample] = field(default_factory=list)
    """The greedy response to each of the `P` prompts; empty where no estimator asks for it (ReMax does)."""
    besides: list["Rollout"] = field(default_factory=list)
    """Rollouts sampled for this one and not learned from: rounds of dynamic sampling, greedy responses."""
    offline: bool = False
    """Whether it is older than the run: `policy_version` then counts the steps of another policy."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The costs of sampling."""
    rewards: ScoredSamples | None = None
    """The rewards of its responses, if dynamic sampling computed them."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, of prompt and response."""
        steps = torch.arange(1, self.loss_mask.shape[1] + 1)
        return (self.loss_mask * steps).amax(-1).tolist()

    @property
    def samples(self) -> list[Sample]:
        """The `N` responses as rewards see them."""
        lengths, truncated = self.loss_mask.sum(-1).tolist(), self.truncated.tolist()
        tokens = zip(self.token_ids, self.loss_mask, strict=True)
        rows = zip(self.prompts, self.responses, lengths, truncated, self.token_ends, tokens, strict=True)
        return [
            Sample(prompt=p, response=r, response_tokens=n, truncated=t, token_ends=ends, tokens=pair)
            for p, r, n, t, ends, pair in rows
        ]


@dataclass(kw_only=True)
class Sequences:
    """Token sequences as the models read them, cut into micro-batches by `select`."""

    token_ids: Int[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    temperature: float
    active: Bool[Tensor, "B"] | None = None
    """False on sequences that no term of the loss depends on: no pass reads them. None if all are read."""

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

        Lists and dictionaries, which describe the whole iteration, are left empty. `changes` are fields of
        the piece alone.
        """
        index = torch.as_tensor(rows, device=self.token_ids.device)
        width = 1 + int(self.loss_mask[index].any(0).nonzero().max())
        pieces: dict[str, Any] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, Tensor):
                pieces[column.name] = value[index, :width] if value.ndim == 2 else value[index]
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

    @classmethod
    def assemble(
        cls, parts: Sequence["TokenScores"], rows: Sequence[Sequence[int]], like: Float[Tensor, "N T"]
    ) -> "TokenScores":
        """The scores of all `[N, T]` tokens from those of micro-batches of the given rows; float32.

        Other rows are zero. Without any micro-batch there are log-probabilities alone, all zero.
        """

        def whole(name: str) -> Any:
            pieces = [getattr(part, name) for part in parts]
            out = torch.zeros_like(like)
            if not pieces:
                return out if name == "logprobs" else None
            if pieces[0] is None:
                return None
            for piece, where in zip(pieces, rows, strict=True):
                out[torch.tensor(where, device=out.device), : piece.shape[1]] = piece.float()
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
    """The weighted reward earned at each token, less the cost of a KL in the reward: outcome rewards stand on
    the last response token, process rewards where a step ends. 0 elsewhere."""
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

    @property
    def outcome(self) -> Float[Tensor, "N"]:
        """The whole reward of each response."""
        return self.rewards.sum(-1)


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
    metrics: dict[str, float] = field(default_factory=dict)
    """The iteration's metrics; only its first micro-batch carries them."""
    records: list[SampleRecord] = field(default_factory=list)
    """The iteration's responses; only its first micro-batch carries them."""

    @property
    def counted(self) -> Bool[Tensor, "B T"]:
        """The response tokens that the loss sums over and its denominators count."""
        return self.loss_mask if self.kept is None else self.loss_mask & self.kept

    @property
    def numbers(self) -> dict[str, Tensor]:
        """Every tensor of floating-point numbers by its name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: v for name, v in named if isinstance(v, Tensor) and v.is_floating_point()}


class TokenLoss(NamedTuple):
    """A loss for every token, unmasked and unreduced, and its metrics, logged as token means."""

    loss: Float[Tensor, "B T"]
    metrics: dict[str, Float[Tensor, "B T"]]
