"""The contract of rollout engines: take weights, answer prompts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from grpo_pl.functional import derive_seed
from grpo_pl.rollout.assembly import Response, assemble_rollout
from grpo_pl.system.refusal import ArgumentError, check_at_least, name_of
from grpo_pl.types import Prompt, Rollout


class EngineLostError(RuntimeError):
    """An engine's processes have ended; the same command resumes the run from its last checkpoint."""

    def __init__(self, what: str, engine: "RolloutEngine") -> None:
        again = "the same command continues the run from its last checkpoint"
        super().__init__(f"{name_of(engine)}: {what}; {again}")


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn.

    Args:
        max_tokens: The longest response, in tokens; one that reaches it without ending is truncated.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Draws from the fewest likeliest tokens of at least this mass (Holtzman et al. 2020,
            arXiv:1904.09751); 1 for all. The models then score each token among those it was drawn from.
        top_k: Draws from this many of the likeliest tokens, before `top_p`; 0 for all.
        top_logprobs: How many of the sampler's likeliest tokens a rollout keeps at each token, with their
            log-probabilities, for `ScoreCentering`; 0 for none. 8 bytes each in memory.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, max_tokens=self.max_tokens)
        check_at_least(0, top_k=self.top_k, top_logprobs=self.top_logprobs)
        if not 0 < self.top_p <= 1:
            raise ArgumentError(
                f"top_p={self.top_p}: expected more than 0 and at most 1 (1 keeps all tokens)"
            )
        if not 0 <= self.temperature < math.inf:
            raise ArgumentError(f"temperature={self.temperature}: expected more than 0 (0 is greedy)")

        if self.truncates and self.top_logprobs:
            raise ArgumentError(
                f"top_logprobs={self.top_logprobs}: not with a top_p or top_k, of which a rollout keeps the "
                "tokens alone: set it to 0, or top_p to 1 and top_k to 0"
            )

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be drawn, so that a rollout says for each token which could."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The largest rollout that an engine has to sample."""

    sequences: int
    group_size: int
    prompt_tokens: int
    response_tokens: int


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Bytes that an engine holds on its device."""

    libraries: int = 0
    """Memory that its libraries add to the process."""
    weights: int = 0
    cache: int = 0
    cache_needed: int = 0
    """The part of the key-value cache that a rollout of the longest responses fills."""
    sampling: int = 0
    """Memory for one forward and the drawing of its tokens, beside weights and cache."""
    max_sequences: int = 0
    sleeps: bool = False
    """Whether weights and cache are freed while the policy learns."""


class RolloutEngine(ABC):
    """Samples responses from the policy's current weights.

    Life cycle: `start`, with the pretrained weights; then `rest`, `load_weights` and `generate` in turns; at
    last `shutdown`. An engine that samples ahead says so in `lookahead`; `prefetch` then announces requests.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
    """

    pretrained: str = ""
    head_dtype: Literal["float32"] | None = None
    """The type in which its LM head multiplies, where it is another than that of its weights."""

    @property
    def weights_dtype(self) -> torch.dtype | None:
        """The type of its weights, to which sharded weights are cast before gathering; None for any."""
        return None

    @property
    def ranks(self) -> int:
        """Neighbouring ranks that share one engine: they call it at once, with the same prompts."""
        return 1

    @property
    def lookahead(self) -> int:
        """Iterations for which it wants to know the prompts ahead; 0 if it samples on request."""
        return 0

    @property
    def offline(self) -> bool:
        """Whether its responses exist already: another policy's, to training prompts alone."""
        return False

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Refuse, before `start`, a truncation by an engine that does not say which tokens it kept."""
        if sampling.truncates:
            raise ArgumentError(
                f"data.sampling has top_p={sampling.top_p:g} and top_k={sampling.top_k}, and {name_of(self)} "
                "does not say which tokens it kept, so every log-probability would be off by their mass: "
                "take InProcessEngine, VLLMEngine with a top_k, or top_p 1 and top_k 0"
            )
        check_top_logprobs(sampling, self, most=0)

    @abstractmethod
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        """Acquire memory and load the model; called once, after everything cheap has been checked.

        ConfigError, with the key to change, if the machine cannot hold it.
        """

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights, and forget everything computed with the old ones. Exhausts the iterable."""

    def check(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> None:  # noqa: B027
        """Refuse early what `generate` would refuse, as far as possible; called after `start`."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        """`group_size` responses to each prompt, response g drawn with `derive_seed(prompt.seed, g)`."""

    def prefetch(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> None:  # noqa: B027
        """Announce a later `generate` with these arguments; idempotent."""

    def rest(self) -> None:  # noqa: B027
        """Free what only generation needs: no `generate` comes before the next `load_weights`."""

    def wait(self) -> None:  # noqa: B027
        """Return when no rollout is under way."""

    def state_dict(self) -> dict[str, Any]:
        """State for a resumed run beside the weights, in types that a checkpoint may hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Resume from a `state_dict`, perhaps another engine's; called after `start`."""

    @abstractmethod
    def shutdown(self) -> None:
        """Free everything; the engine may be started again."""

    def memory(self, demand: Demand, device: torch.device) -> EngineMemory:  # noqa: ARG002 - for those that have some
        """The memory that it will hold, for `plan`; none for an engine outside of the process."""
        return EngineMemory()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One turn to be sampled."""

    key: int
    """Comes back with the response; unique among the requests that are under way."""
    token_ids: list[int]
    """Everything before the turn."""
    seed: int
    sampling: SamplingConfig

    @property
    def drawn(self) -> SamplingConfig:
        """How its tokens are drawn, whatever their number."""
        return replace(self.sampling, max_tokens=1)


class SamplingEngine(RolloutEngine):
    """An engine that samples one request beside the other: none waits for the end of another.

    In float32 a response depends on its own request alone: neither on the others that are under way, nor on
    when they came.
    """

    version: int = 0
    """Optimizer steps that the current weights have taken."""

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Put a request under way; `step` samples it."""

    @abstractmethod
    def step(self) -> list[tuple[int, Response]]:
        """Sample for a moment; the keys and responses of the requests that have ended.

        Returns at once if no request is under way; else perhaps without any, so that the caller may submit
        others in between.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Leave all requests that are under way unanswered: `step` will know nothing of them."""

    def costs(self) -> dict[str, float]:
        """Metrics of the requests since the last call, for `Rollout.metrics`."""
        return {}

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Where the body is interrupted, nothing of it is left under way for the next rollout.

        `submit` and `step` may fail as they are: whoever calls them does so in here.
        """
        try:
            yield
        except BaseException:
            self.abandon()
            raise

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        requests = requests_of(prompts, group_size, sampling)
        answers: dict[int, Response] = {}
        with self.undisturbed():
            for request in requests:
                self.submit(request)
            while len(answers) < len(requests):
                answers.update(self.step())
        responses = [answers[request.key] for request in requests]
        rollout = assemble_rollout(
            prompts, responses, policy_version=self.version, temperature=sampling.temperature
        )
        rollout.metrics |= self.costs()
        return rollout


def requests_of(prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> list[Request]:
    """The requests for the responses to prompts, group after group."""
    pairs = [(prompt, g) for prompt in prompts for g in range(group_size)]
    return [
        Request(key=key, token_ids=prompt.token_ids, seed=derive_seed(prompt.seed, g), sampling=sampling)
        for key, (prompt, g) in enumerate(pairs)
    ]


class OfflineEngine(RolloutEngine):
    """An engine whose responses exist already, whatever the weights; its rollouts are marked `offline`."""

    @property
    @override
    def offline(self) -> bool:
        return True

    @override
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        for _ in weights:  # collective where they are sharded
            pass

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        rollout = self.look_up(prompts, group_size, sampling)
        rollout.offline = True
        return rollout

    @abstractmethod
    def look_up(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        """The first `group_size` responses to each prompt."""


def check_top_logprobs(sampling: SamplingConfig, engine: RolloutEngine, most: int) -> None:
    """Refuse to ask an engine for more of its likeliest tokens than it gives."""
    if sampling.top_logprobs > most:
        gives = f"gives {f'at most {most}' if most else 'none'} of its likeliest tokens"
        raise ArgumentError(
            f"data.sampling.top_logprobs={sampling.top_logprobs}, and {name_of(engine)} {gives}: set it to "
            f"{most}{'' if most else ', or take InProcessEngine or VLLMEngine'}"
        )


SAMPLING_LOGITS_COPIES = 3
"""Float32 copies of the logits while tokens are drawn: as they come, log-probabilities, probabilities."""


def sampling_bytes(vocabulary: int, sequences: int) -> int:
    """The memory for drawing one token of each sequence."""
    return SAMPLING_LOGITS_COPIES * 4 * vocabulary * sequences
