"""An engine that answers with what the data set brings: to train on anyone's responses."""

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
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Rollout

BATCH_TOKENS = 16384
"""The most tokens, padding included, that the model reads at once."""


@final
class DatasetEngine(OfflineEngine):
    """Answers with the responses that stand in `data.train` beside each question, whatever the weights.

    A response is a text, or an object with `text` or `token_ids`; with `logprobs`, in nats at
    `data.sampling.temperature`, of the policy that sampled these tokens; and with `truncated` if it was cut.
    A text becomes the tokens of the tokenizer and, unless it was cut, the one that ends a response.
    Log-probabilities that are not given are computed: those of the pretrained model.

    Args:
        column: The column with a response to the question or a list of them, of which the first
            `data.group_size` are taken.
        pretrained: Model folder or hub name; where empty, the one of `--pretrained`.
        dtype: Of the weights with which log-probabilities are computed.
    """

    def __init__(self, column: str = "responses", pretrained: str = "", dtype: DType = "float32") -> None:
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
        """Put the pretrained model's log-probabilities into some rows."""
        if rows and self._model is None:
            built = CausalLM(self.pretrained, self.dtype).build()
            self._model = built.eval().to(self._device)
        for batch in batches_within([rollout.lengths[row] for row in rows], BATCH_TOKENS):
            chosen = [rows[i] for i in batch]
            width = max(rollout.lengths[row] for row in chosen)
            token_ids, mask = rollout.token_ids[chosen, :width], rollout.loss_mask[chosen, :width]
            assert self._model is not None
            said = self._model(token_ids.to(self._device), mask.to(self._device), rollout.temperature)
            rollout.sampling_logprobs[chosen, :width] = said.logprobs.float().cpu()

    @override
    def memory(self, demand: Demand, device: torch.device) -> EngineMemory:
        """The model that computes log-probabilities, as if some were not given."""
        with without_weights():
            model = load_language_model(self.pretrained, self.dtype)
        return EngineMemory(weights=tensor_bytes(model.parameters()))

    # ---------------------------------------------------------------------------------- what the column holds

    def _group(self, prompt: Prompt, group_size: int, sampling: SamplingConfig) -> list[Response]:
        where = f"data.train: the column {self.column!r} of {prompt.text[:40]!r}"
        if self.column not in prompt.metadata:
            has = ", ".join(map(repr, prompt.metadata)) or "none"
            raise ConfigError(f"{where} is missing; set the engine's column to one of the others: {has}")
        held = prompt.metadata[self.column]
        given = held if isinstance(held, list) else [held]
        if len(given) < group_size:
            raise ConfigError(
                f"{where} has {len(given)} responses, and data.group_size={group_size} asks for more: lower "
                "it, or leave the row out"
            )
        return [self._response(one, sampling, where) for one in given[:group_size]]

    def _response(self, given: Any, sampling: SamplingConfig, where: str) -> Response:
        said = {"text": given} if isinstance(given, str) else given
        if not isinstance(said, dict):
            raise ConfigError(
                f"{where} has {given!r:.60}: expected a text, or an object with text or token_ids"
            )
        cut, ids = said.get("truncated"), self._token_ids(said, where)
        if len(ids) > sampling.max_tokens:
            raise ConfigError(
                f"{where} has a response of {len(ids)} tokens, and data.sampling.max_tokens is "
                f"{sampling.max_tokens}: raise it, or leave the row out"
            )
        (text,) = self._tokenizer.batch_decode([ids], skip_special_tokens=True)
        return Response(
            token_ids=ids,
            logprobs=given_logprobs(said, where),
            text=text,
            truncated=ids[-1] not in self._eos if cut is None else bool(cut),
            token_ends=token_ends(self._tokenizer, ids, text),
        )

    def _token_ids(self, said: dict[str, Any], where: str) -> list[int]:
        ids, text = said.get("token_ids"), said.get("text")
        if ids is None and isinstance(text, str):
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += [] if said.get("truncated") else self._eos[:1]
        if not isinstance(ids, list) or not ids or not all(map(self._knows, ids)):
            raise ConfigError(
                f"{where} has {said!r:.60}: expected a text, or token_ids of the {self._vocabulary} that the "
                "model knows"
            )
        return ids

    def _knows(self, token: object) -> bool:
        return type(token) is int and 0 <= token < self._vocabulary

    @override
    def shutdown(self) -> None:
        self._model = None


def given_logprobs(said: dict[str, Any], where: str) -> list[float]:
    """The log-probabilities of a response's tokens; empty where they are to be computed."""
    numbers, ids = said.get("logprobs"), said.get("token_ids")
    if numbers is None:
        return []
    if ids is None or not isinstance(numbers, list) or len(numbers) != len(ids):
        raise ConfigError(f"{where} has logprobs that are not one for each of token_ids: leave them out")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ConfigError(f"{where} has logprobs that are no finite numbers: leave them out")
    return [float(number) for number in numbers]
