"""Reads growing sequences for `InProcessEngine`: with a key-value cache where that is right."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_pl.models.growing_cache import grow_in_place, keep_sequences
from grpo_pl.models.own_forward import FAILURES, called, ordinary_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS, STEPS = (5, 2), 3
"""The tokens of the prompts on which the readers are compared, and how often a token is read after them."""
NATS = {torch.float32: 0.01, torch.float64: 0.01}
"""Nats on average, over the vocabulary, that rounding explains; `ROUGHLY` for other types."""
ROUGHLY = 0.1


class CachedReader:
    """Reads the sequences together, prompts padded on the left, each token once and equal prompts once."""

    def __init__(self, model: "PreTrainedModel", prompts: Sequence[list[int]]) -> None:
        self.model, self.prompts = model, [tuple(prompt) for prompt in prompts]

    def first(self) -> Float[Tensor, "N V"]:
        """The logits of the token after each prompt, in the model's type and on its device."""
        different = list(dict.fromkeys(self.prompts))
        logits = self._begin(different)
        if len(different) == len(self.prompts):
            return logits
        which = {prompt: i for i, prompt in enumerate(different)}
        rows = [which[prompt] for prompt in self.prompts]
        return logits[rows] if self.keep(rows) else self._begin(self.prompts)

    def _begin(self, prompts: Sequence[tuple[int, ...]]) -> Float[Tensor, "N V"]:
        width = max(map(len, prompts))
        pads = [width - len(prompt) for prompt in prompts]
        self._mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
        self._cache: Any = None
        return self._read(torch.tensor([[0] * pad + [*p] for pad, p in zip(pads, prompts, strict=True)]))

    def after(self, chosen: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
        """The logits after one token more of each sequence."""
        tokens = chosen[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(tokens)], -1)
        return self._read(tokens)

    def keep(self, sequences: Sequence[int]) -> bool:
        """Go on with these sequences alone, one of them perhaps many times; False if the cache cannot."""
        rows = torch.tensor(sequences)
        kept = keep_sequences(self._cache, rows.to(self.model.device))
        if kept:
            self._mask = self._mask[rows]
        return kept

    def _read(self, tokens: Int[Tensor, "N T"]) -> Float[Tensor, "N V"]:
        device = self.model.device
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self.model(
            input_ids=tokens.to(device),
            attention_mask=self._mask.to(device),
            position_ids=positions.to(device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        grow_in_place(self._cache)
        logits: Tensor = output.logits[:, -1]
        return logits


class WholeReader:
    """Reads each sequence alone and whole for each token: slow, and right for every causal model."""

    def __init__(self, model: "PreTrainedModel", prompts: Sequence[list[int]]) -> None:
        self.model, self.rows = model, [list(prompt) for prompt in prompts]

    def first(self) -> Float[Tensor, "N V"]:
        """The logits of the token after each prompt, in the model's type and on its device."""
        rows = [torch.tensor([row], device=self.model.device) for row in self.rows]
        return torch.stack([self.model(input_ids=row, use_cache=False).logits[0, -1] for row in rows])

    def after(self, chosen: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
        """The logits after one token more of each sequence."""
        for row, token in zip(self.rows, chosen.tolist(), strict=True):
            row.append(token)
        return self.first()

    def keep(self, sequences: Sequence[int]) -> bool:
        """Go on with these sequences alone."""
        self.rows = [self.rows[i] for i in sequences]
        return True


ReaderKind: TypeAlias = type[CachedReader] | type[WholeReader]


@torch.no_grad()
def right_reader(model: "PreTrainedModel", pretrained: str) -> ReaderKind:
    """`CachedReader` if it reads what the model reads of each sequence alone, else `WholeReader`.

    Models without a key-value cache, as Mamba, and those that padding on the left changes are read whole.
    """
    tokens = ordinary_tokens(model, sum(PROMPTS) + STEPS * len(PROMPTS))
    with called(model, pretrained):
        whole = _read(WholeReader, model, tokens)
    try:
        cached = _read(CachedReader, model, tokens)
    except FAILURES:
        return WholeReader
    possible = whole > -1e4
    apart = (cached - whole)[possible].abs().mean()
    return CachedReader if apart <= NATS.get(model.dtype, ROUGHLY) else WholeReader


def _read(kind: ReaderKind, model: "PreTrainedModel", tokens: Int[Tensor, "L"]) -> Float[Tensor, "S V"]:
    """All log-probabilities after the prompts and after each step."""
    *prompts, rest = tokens.split([*PROMPTS, STEPS * len(PROMPTS)])
    reader = kind(model, [prompt.tolist() for prompt in prompts])
    steps = rest.cpu().view(STEPS, len(PROMPTS))
    return torch.cat([reader.first(), *map(reader.after, steps)]).float().log_softmax(-1)
