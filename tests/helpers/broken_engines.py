"""Engines with one thing wrong, each of which some engine of the field has had."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from grpo_pl.rollout.assembly import Response
from grpo_pl.rollout.engine import Request
from grpo_pl.rollout.in_process import InProcessEngine


class Forgetful(InProcessEngine):  # type: ignore[misc]
    """Takes weights and keeps its own."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:  # noqa: ARG002
        for _ in weights:
            pass


class StaleHead(InProcessEngine):  # type: ignore[misc]
    """Loads all weights but that of a tied LM head, as vLLM on a CPU does."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        assert self._model is not None
        head = self._model.lm_head.weight.detach().clone()
        self._model.lm_head.weight = self._model.model.embed_tokens.weight
        super().load_weights(weights, version)
        self._model.lm_head.weight = nn.Parameter(head)


class FixedTemperature(InProcessEngine):  # type: ignore[misc]
    """Samples at 1, whatever it is asked for."""

    def _sample(self, requests: Sequence[Request]) -> list[Response]:
        return super()._sample([replace(r, sampling=replace(r.sampling, temperature=1.0)) for r in requests])


class TopP(InProcessEngine):  # type: ignore[misc]
    """Keeps nine tenths of each distribution."""

    @staticmethod
    def _draw(scores: Tensor, generators: Sequence[torch.Generator], temperature: float) -> Tensor:
        mass, order = scores.exp().sort(descending=True)
        cut = (mass.cumsum(-1) - mass >= 0.9).gather(-1, order.argsort(-1))
        scores.masked_fill_(cut, -torch.inf)
        scores -= scores.logsumexp(-1, keepdim=True)
        return InProcessEngine._draw(scores, generators, temperature)


class AddsBos(InProcessEngine):  # type: ignore[misc]
    """Reads a BOS before each prompt, as one that gets text does."""

    def _sample(self, requests: Sequence[Request]) -> list[Response]:
        bos = self._tokenizer.bos_token_id
        return super()._sample([replace(r, token_ids=[bos, *r.token_ids]) for r in requests])


class Fails(InProcessEngine):  # type: ignore[misc]
    """Knows a parameter by another name."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:  # noqa: ARG002
        dict(weights)["model.no_such_layer.weight"]
