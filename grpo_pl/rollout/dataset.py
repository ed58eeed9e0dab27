"""An engine that answers with responses from the data set: to train on anyone's responses."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from typing_extensions import override

from grpo_pl.functional import batches_within
from grpo_pl.models import CausalLM, LanguageModel
from grpo_pl.models.full_weights import tensor_bytes
from grpo_pl.models.loading import (
    eos_token_ids,
    load_language_model,
    load_tokenizer,
    vocabulary_size,
    without_weights,
)
from grpo_pl.rollout.assembly import Response, assemble_rollout, token_ends
from grpo_pl.rollout.engine import Demand, EngineMemory, OfflineEngine, SamplingConfig
from grpo_pl.system.precision import DType
from grpo_pl.system.refusal import ConfigError, name_of
from grpo_pl.types import Prompt, Rollout

BATCH_TOKENS = 16384
"""The most tokens, padding included, that the model reads at once."""


@final
class DatasetEngine(OfflineEngine):
    """Answers with the responses in `data.train` beside each question, whatever the weights.

    A response is a text, or an object with `text` or `token_ids`. It may have `logprobs`, in nats at
    `data.sampling.temperature`, of the policy that sampled these tokens, and `truncated` if it was cut. A
    text becomes the tokenizer's tokens and, unless it was cut, the one that ends a response. Missing
    log-probabilities are computed with the pretrained model.

    Args:
        column: The column with a response to the question or a list of them, of which the first
            `data.group_size` are taken; null for the gold answer of the data.
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Type of the weights that compute missing log-probabilities.
    """

    def __init__(
        self, column: str | None = "responses", pretrained: str = "", dtype: DType = "float32"
    ) -> None:
        self.column, self.pretrained, self.dtype = column, pretrained, dtype
        self._model: LanguageModel | None = None

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        self._tokenizer, self._device = load_tokenizer(self.pretrained), device
        self._vocabulary, eos = vocabulary_size(self.pretrained), eos_token_ids(self.pretrained)
        self._eos = sorted(eos, key=lambda token: (token != self._tokenizer.eos_token_id, token))

    @override
    def check(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> None:
        for prompt in prompts:
            self._group(prompt, group_size, sampling)

    @override
    def look_up(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        responses = [one for prompt in prompts for one in self._group(prompt, group_size, sampling)]
        rollout = assemble_rollout(prompts, responses, policy_version=0, temperature=sampling.temperature)
        self._score(rollout, [n for n, response in enumerate(responses) if not response.logprobs])
        return rollout

    @torch.no_grad()
    def _score(self, rollout: Rollout, rows: Sequence[int]) -> None:
        """Write the pretrained model's log-probabilities into some rows."""
        if rows and self._model is None:
            built = CausalLM(self.pretrained, self.dtype).build()
            self._model = built.eval().to(self._device)
        for batch in batches_within([rollout.lengths[row] for row in rows], BATCH_TOKENS):
            chosen = [rows[i] for i in batch]
            width = max(rollout.lengths[row] for row in chosen)
            token_ids, mask = rollout.token_ids[chosen, :width], rollout.loss_mask[chosen, :width]
            assert self._model is not None
            scores = self._model(token_ids.to(self._device), mask.to(self._device), rollout.temperature)
            rollout.sampling_logprobs[chosen, :width] = scores.logprobs.float().cpu()

    @override
    def memory(self, demand: Demand, device: torch.device) -> EngineMemory:
        """The model that computes log-probabilities, as if some were missing."""
        with without_weights():
            model = load_language_model(self.pretrained, self.dtype)
        return EngineMemory(weights=tensor_bytes(model.parameters()))

    def _group(self, prompt: Prompt, group_size: int, sampling: SamplingConfig) -> list[Response]:
        where = f"data.train: the column {self.column or 'answer'!r} of {prompt.text[:40]!r}"
        if self.column is not None and self.column not in prompt.metadata:
            has = ", ".join(map(repr, prompt.metadata)) or "none"
            raise ConfigError(f"{where} is missing; set {name_of(self)}.column to one of the others: {has}")
        value = prompt.answer if self.column is None else prompt.metadata[self.column]
        entries = value if isinstance(value, list) else [value]
        if len(entries) < group_size:
            raise ConfigError(
                f"{where} has {len(entries)} responses, and data.group_size={group_size} asks for more: "
                "lower it, or leave the row out"
            )
        return [self._response(entry, sampling, where) for entry in entries[:group_size]]

    def _response(self, entry: Any, sampling: SamplingConfig, where: str) -> Response:
        content = {"text": entry} if isinstance(entry, str) else entry
        if not isinstance(content, dict):
            raise ConfigError(
                f"{where} has {entry!r:.60}: expected a text, or an object with text or token_ids"
            )
        cut, ids = content.get("truncated"), self._token_ids(content, where)
        if len(ids) > sampling.max_tokens:
            raise ConfigError(
                f"{where} has a response of {len(ids)} tokens, and data.sampling.max_tokens is "
                f"{sampling.max_tokens}: raise it, or leave the row out"
            )
        (text,) = self._tokenizer.batch_decode([ids], skip_special_tokens=True)
        return Response(
            token_ids=ids,
            logprobs=stored_logprobs(content, where),
            text=text,
            truncated=ids[-1] not in self._eos if cut is None else bool(cut),
            token_ends=token_ends(self._tokenizer, ids, text),
        )

    def _token_ids(self, content: dict[str, Any], where: str) -> list[int]:
        ids, text = content.get("token_ids"), content.get("text")
        if ids is None and isinstance(text, str):
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += [] if content.get("truncated") else self._eos[:1]
        known = range(self._vocabulary)
        if not isinstance(ids, list) or not ids or not all(type(n) is int and n in known for n in ids):
            raise ConfigError(
                f"{where} has {content!r:.60}: expected a text, or token_ids of the {self._vocabulary} that "
                "the model knows"
            )
        return ids

    @override
    def shutdown(self) -> None:
        self._model = None


def stored_logprobs(content: dict[str, Any], where: str) -> list[float]:
    """The log-probabilities of a response's tokens; empty if they must be computed."""
    numbers, ids = content.get("logprobs"), content.get("token_ids")
    if numbers is None:
        return []
    if ids is None or not isinstance(numbers, list) or len(numbers) != len(ids):
        raise ConfigError(f"{where} has logprobs that are not one for each of token_ids: leave them out")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ConfigError(f"{where} has logprobs that are not finite numbers: leave them out")
    return [float(number) for number in numbers]
