"""From the responses of an engine to a Rollout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.decoders import DecodeStream

from grpo_pl.functional import pad_rows
from grpo_pl.types import Prompt, Rollout


@dataclass(kw_only=True)
class Response:
    """One response as an engine returns it."""

    token_ids: list[int]
    """The sampled tokens, the end-of-sequence token included."""
    logprobs: list[float]
    text: str
    truncated: bool
    token_ends: list[int]
    """Where in `text` the text of each token ends, in characters."""


def token_ends(tokenizer: Any, token_ids: Sequence[int], text: str) -> list[int]:
    """Where in `text` each token's text ends, in characters.

    A token that completes no character ends with the one before it.
    """
    stream, ends, end = DecodeStream(skip_special_tokens=True), [], 0
    for token in token_ids:
        end += len(stream.step(tokenizer.backend_tokenizer, token) or "")
        ends.append(min(end, len(text)))
    return ends


def assemble_rollout(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    *,
    policy_version: int,
    temperature: float,
) -> Rollout:
    """Lay out the G responses to each of P prompts as one padded `[N, T]` batch."""
    owners = [prompt for prompt, group in zip(prompts, responses, strict=True) for _ in group]
    flat = [response for group in responses for response in group]
    starts = [len(prompt.token_ids) for prompt in owners]
    width = max(start + len(response.token_ids) for start, response in zip(starts, flat, strict=True))

    def lay_out(
        after: Sequence[Sequence[float | int]], before: Sequence[list[int]], dtype: torch.dtype
    ) -> Any:
        rows = [torch.tensor([*head, *tail], dtype=dtype) for head, tail in zip(before, after, strict=True)]
        return pad_rows(rows, width)

    blank = [[0] * start for start in starts]
    token_ids = lay_out([r.token_ids for r in flat], [p.token_ids for p in owners], torch.long)
    return Rollout(
        token_ids=token_ids,
        loss_mask=lay_out([[1] * len(r.token_ids) for r in flat], blank, torch.bool),
        sampling_logprobs=lay_out([r.logprobs for r in flat], blank, torch.float32),
        group_ids=torch.tensor([i for i, group in enumerate(responses) for _ in group]),
        prompts=owners,
        responses=[r.text for r in flat],
        token_ends=[r.token_ends for r in flat],
        truncated=torch.tensor([r.truncated for r in flat]),
        policy_version=policy_version,
        temperature=temperature,
    )
