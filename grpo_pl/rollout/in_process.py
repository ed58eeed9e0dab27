"""An engine from the trainer's own parts: for tests, odd architectures and debugging."""

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.architecture import Architecture
from grpo_pl.models.full_weights import tensor_bytes
from grpo_pl.models.heads import HeadDType, compute_head_in
from grpo_pl.models.loading import eos_token_ids, load_language_model, load_tokenizer, without_weights
from grpo_pl.rollout.assembly import Response, token_ends
from grpo_pl.rollout.engine import (
    Demand,
    EngineMemory,
    Request,
    SamplingConfig,
    SamplingEngine,
    sampling_bytes,
)
from grpo_pl.rollout.readers import CachedReader, ReaderKind, right_reader
from grpo_pl.rollout.support import kept_tokens, tokens_of
from grpo_pl.rollout.top_logprobs import stacked
from grpo_pl.system.precision import OpenDType, chosen_dtype
from grpo_pl.system.refusal import about

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STILL_READ = 0.9
"""Once at most this share of the sequences that are read goes on, the others are read no more."""


@final
class InProcessEngine(SamplingEngine):
    """Samples with transformers from a copy of the policy: slow, and right everywhere.

    It reads with a key-value cache, a prompt once for its group and no sequence that has ended. Models where
    that cache is not right (Mamba has none, and padding on the left changes some) read each sequence whole
    for each token.

    Args:
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Type of the copy's weights; "auto" takes what the trainer computes in.
        max_sequences: Sequences sampled at once.
        head_dtype: The type in which the LM head multiplies, the same as `model.policy.head_dtype`.
    """

    def __init__(
        self,
        pretrained: str = "",
        dtype: OpenDType = "float32",
        max_sequences: int = 64,
        head_dtype: HeadDType = None,
    ) -> None:
        self.pretrained, self.dtype, self.max_sequences = pretrained, dtype, max_sequences
        self.head_dtype = head_dtype
        self._model: PreTrainedModel | None = None
        self._reader: ReaderKind = CachedReader
        self._waiting: list[Request] = []

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        self._device = device
        self._model = load_language_model(self.pretrained, chosen_dtype(self.dtype, device))
        nn.Module.to(self._model, device)
        with about(self):
            compute_head_in(self.head_dtype, self._model)
            self._reader = right_reader(self._model, self.pretrained)
        self._tokenizer = load_tokenizer(self.pretrained)
        self._eos = eos_token_ids(self.pretrained)

    @override
    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Any: it says which tokens it kept."""

    @property
    @override
    def weights_dtype(self) -> torch.dtype:
        return cast(torch.dtype, getattr(torch, chosen_dtype(self.dtype)))

    @override
    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        assert self._model is not None, "start() comes first"
        missing = dict(self._model.named_parameters())
        for name, tensor in weights:
            missing.pop(name).copy_(tensor)
        assert not missing, f"the trainer sent no {sorted(missing)}"
        self.version = version

    @override
    def submit(self, request: Request) -> None:
        self._waiting.append(request)

    @override
    def abandon(self) -> None:
        self._waiting.clear()

    @override
    def step(self) -> list[tuple[int, Response]]:
        """The responses to as many as are sampled at once, of those that wait and are drawn alike."""
        alike = [r for r in self._waiting if r.drawn == self._waiting[0].drawn][: self.max_sequences]
        taken = {request.key for request in alike}
        self._waiting = [request for request in self._waiting if request.key not in taken]
        return list(zip((request.key for request in alike), self._sample(alike), strict=True))

    @torch.no_grad()
    def _sample(self, requests: Sequence[Request]) -> list[Response]:
        """One batch, of which all tokens are drawn alike; each row draws from a generator of its own."""
        assert self._model is not None, "start() comes first"
        if not requests:
            return []
        rows, sampling = [Row(request, self._eos) for request in requests], requests[0].sampling
        reader = self._reader(self._model, [request.token_ids for request in requests])
        logits, read = reader.first(), rows
        while True:
            scores = logits.float().cpu() / (sampling.temperature or 1.0)
            if sampling.truncates:
                scores = scores.masked_fill(~kept_tokens(scores, sampling.top_p, sampling.top_k), -torch.inf)
            scores = scores.log_softmax(-1)
            chosen = self._draw(scores, [row.generator for row in read], sampling.temperature)
            logprobs = scores.gather(-1, chosen[:, None])[:, 0]
            for row, *drawn in zip(read, chosen.tolist(), logprobs.tolist(), scores, strict=True):
                row.take(*drawn)
            going = [i for i, row in enumerate(read) if not row.ended]
            if not going:
                return [row.response(self._tokenizer) for row in rows]
            if len(going) <= STILL_READ * len(read) and reader.keep(going):
                read, chosen = [read[i] for i in going], chosen[going]
            logits = reader.after(chosen)

    @staticmethod
    def _draw(scores: Tensor, generators: Sequence[torch.Generator], temperature: float) -> Tensor:
        """The Gumbel-max trick: argmax of log p + Gumbel noise is a sample of p."""
        if temperature == 0:
            return scores.argmax(-1)
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in generators])
        return (scores - noise.log()).argmax(-1)

    @override
    def shutdown(self) -> None:
        self._model = None

    @override
    def memory(self, demand: Demand, device: torch.device) -> EngineMemory:
        with without_weights():
            model = load_language_model(self.pretrained, chosen_dtype(self.dtype, device))
        architecture, sequences = Architecture.of(model), min(demand.sequences, self.max_sequences)
        tokens = sequences * (demand.prompt_tokens + demand.response_tokens)
        cache = architecture.cache_bytes(tokens, model.dtype.itemsize)
        return EngineMemory(
            weights=tensor_bytes(model.parameters()),
            cache=cache,
            cache_needed=cache,
            sampling=sampling_bytes(architecture.vocabulary, sequences),
            max_sequences=self.max_sequences,
        )


class Row:
    """A response as it is sampled."""

    def __init__(self, request: Request, eos: Container[int]) -> None:
        self.request, self.eos = request, eos
        self.generator = torch.Generator().manual_seed(request.seed)
        self.ended, self.truncated = False, False
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.supports: list[Tensor] = []
        self.tops: list[tuple[Tensor, Tensor]] = []

    def take(self, token: int, logprob: float, scores: Tensor) -> None:
        """Append a token with its log-probability, one of these; nothing once the response has ended."""
        if self.ended:
            return
        sampling = self.request.sampling
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if sampling.truncates:
            self.supports.append(tokens_of(scores > -torch.inf))
        if sampling.top_logprobs:
            top = scores.topk(min(sampling.top_logprobs, len(scores)))
            self.tops.append((top.indices.int(), top.values))
        self.truncated = token not in self.eos and len(self.token_ids) == sampling.max_tokens
        self.ended = self.truncated or token in self.eos

    def response(self, tokenizer: Any) -> Response:
        """The whole response."""
        text, sampling = tokenizer.decode(self.token_ids, skip_special_tokens=True), self.request.sampling
        return Response(
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            text=text,
            truncated=self.truncated,
            token_ends=token_ends(tokenizer, self.token_ids, text),
            candidates=self.supports if sampling.truncates else None,
            top=stacked(self.tops) if sampling.top_logprobs else None,
        )
