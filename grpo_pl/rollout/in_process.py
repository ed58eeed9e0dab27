"""An engine from the trainer's own parts: for tests, odd architectures and debugging."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.functional import derive_seed
from grpo_pl.models.architecture import Architecture
from grpo_pl.models.full_weights import tensor_bytes
from grpo_pl.models.heads import HeadDType, compute_head_in
from grpo_pl.models.loading import eos_token_ids, load_language_model, load_tokenizer, without_weights
from grpo_pl.rollout.assembly import Response, assemble_rollout, token_ends
from grpo_pl.rollout.engine import Demand, EngineMemory, RolloutEngine, SamplingConfig, sampling_bytes
from grpo_pl.rollout.readers import CachedReader, ReaderKind, right_reader
from grpo_pl.rollout.support import kept_tokens, tokens_of
from grpo_pl.rollout.top_logprobs import stacked
from grpo_pl.system.precision import OpenDType, chosen_dtype
from grpo_pl.system.refusal import about
from grpo_pl.types import Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@final
class InProcessEngine(RolloutEngine):
    """Samples with transformers from a copy of the policy: slow, and right everywhere.

    It reads with a key-value cache. Models where that is not right (Mamba has none, and padding on the left
    changes some) read each sequence whole for each token.

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
        self._version = 0

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
        self._version = version

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        requests = [(prompt, derive_seed(prompt.seed, g)) for prompt in prompts for g in range(group_size)]
        responses: list[Response] = []
        for start in range(0, len(requests), self.max_sequences):
            responses += self._sample(requests[start : start + self.max_sequences], sampling)
        return assemble_rollout(
            prompts, responses, policy_version=self._version, temperature=sampling.temperature
        )

    @torch.no_grad()
    def _sample(self, requests: Sequence[tuple[Prompt, int]], sampling: SamplingConfig) -> list[Response]:
        """One batch; each row draws from a generator of its own."""
        assert self._model is not None, "start() comes first"
        generators = [torch.Generator().manual_seed(seed) for _, seed in requests]
        reader = self._reader(self._model, [prompt.token_ids for prompt, _ in requests])
        rows: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        supports: list[list[Tensor]] = [[] for _ in requests]
        tops: list[list[tuple[Tensor, Tensor]]] = [[] for _ in requests]
        alive, logits = set(range(len(requests))), reader.first()
        for tokens in range(1, sampling.max_tokens + 1):
            scores = logits.float().cpu() / (sampling.temperature or 1.0)
            if sampling.truncates:
                kept = kept_tokens(scores, sampling.top_p, sampling.top_k)
                scores = scores.masked_fill(~kept, -torch.inf)
                for row in alive:
                    supports[row].append(tokens_of(kept[row]))
            scores = scores.log_softmax(-1)
            chosen = self._draw(scores, generators, sampling.temperature)
            if sampling.top_logprobs:
                top = scores.topk(min(sampling.top_logprobs, scores.shape[-1]))
                for row in alive:
                    tops[row].append((top.indices[row].int(), top.values[row]))
            for row in sorted(alive):
                rows[row].append(int(chosen[row]))
                logprobs[row].append(float(scores[row, chosen[row]]))
                if int(chosen[row]) in self._eos:
                    alive.discard(row)
            if not alive or tokens == sampling.max_tokens:
                break
            logits = reader.after(chosen)
        texts = self._tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            Response(
                token_ids=ids,
                logprobs=lps,
                text=text,
                truncated=row in alive,
                token_ends=token_ends(self._tokenizer, ids, text),
                candidates=supports[row] if sampling.truncates else None,
                top=stacked(tops[row]) if sampling.top_logprobs else None,
            )
            for row, (ids, lps, text) in enumerate(zip(rows, logprobs, texts, strict=True))
        ]

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
