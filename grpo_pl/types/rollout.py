"""The responses that the engine gives to prompts."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.types.prompt import Prompt


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
    """Rollouts sampled for this one: all rounds of dynamic sampling where there were several, from which its
    groups come, and greedy responses (temperature 0)."""
    offline: bool = False
    """Whether it is older than the run: `policy_version` then counts the steps of another policy."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The costs of sampling."""
    rewards: ScoredSamples | None = None
    """The rewards of its responses, if dynamic sampling computed them."""
    candidates: Int[Tensor, "N T K"] | None = None
    """The ids of the tokens that each token was drawn from where sampling truncates, itself among them; -1
    elsewhere. None if it was drawn from the whole vocabulary."""
    top_tokens: Int[Tensor, "N T K"] | None = None
    """The ids of the sampler's K likeliest tokens at each response token; -1 elsewhere. None if not kept."""
    top_logprobs: Float[Tensor, "N T K"] | None = None
    """Their log-probabilities in the whole vocabulary, in nats, at `temperature`; 0 elsewhere."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, of prompt and response."""
        steps = torch.arange(1, self.loss_mask.shape[1] + 1)
        return (self.loss_mask * steps).amax(-1).tolist()

    @property
    def tokens_generated(self) -> int:
        """All tokens sampled for it, with those of rounds thrown away and of greedy responses."""
        rounds = [other for other in self.besides if other.temperature == self.temperature]
        sampled = self.besides if rounds else [self, *self.besides]  # its groups come from the rounds
        return sum(int(rollout.loss_mask.sum()) for rollout in sampled)

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
