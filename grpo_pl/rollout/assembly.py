"""Assembles Rollouts from the responses of an engine, and passes them between processes and files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from grpo_pl.functional import pad_rows
from grpo_pl.rollout.support import lay_out_support
from grpo_pl.rollout.top_logprobs import lay_out_top
from grpo_pl.types import Prompt, Rollout


@dataclass(kw_only=True)
class Response:
    """One response as an engine returns it."""

    token_ids: list[int]
    """The sampled tokens, the end-of-sequence token included; of an episode also those between its turns."""
    logprobs: list[float]
    """Of each sampled token, in nats; 0 between turns."""
    text: str
    """What was sampled alone."""
    truncated: bool
    token_ends: list[int]
    """Where in `text` the text of each sampled token ends, in characters."""
    turns: list[int] | None = None
    """The turn in which each token was sampled, from 1, and 0 between turns; None where all are one turn."""
    candidates: list[Tensor] | None = None
    """The tokens that each token was drawn from, where sampling truncates; None for the whole vocabulary."""
    top: tuple[Tensor, Tensor] | None = None
    """Ids and log-probabilities of the likeliest tokens at each token, `[L, K]`; None if not asked for."""


def token_ends(tokenizer: Any, token_ids: Sequence[int], text: str) -> list[int]:
    """Where in `text` each token's text ends, in characters.

    A token that completes no character ends with the one before it.
    """
    stream, ends, end = DecodeStream(skip_special_tokens=True), [], 0
    for token in token_ids:
        end += len(stream.step(tokenizer.backend_tokenizer, token) or "")
        ends.append(min(end, len(text)))
    return ends


def repeated(prompts: Sequence[Prompt], group_size: int) -> list[Prompt]:
    """The prompt of each response."""
    return [prompt for prompt in prompts for _ in range(group_size)]


def assemble_rollout(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    *,
    policy_version: int,
    temperature: float,
) -> Rollout:
    """Lay out the G responses to each of P prompts, group after group, as one padded `[N, T]` batch."""
    group_size = len(responses) // len(prompts)
    owners = repeated(prompts, group_size)
    starts = [len(prompt.token_ids) for prompt in owners]
    width = max(start + len(response.token_ids) for start, response in zip(starts, responses, strict=True))

    def lay_out(
        after: Sequence[Sequence[float | int]], before: Sequence[list[int]], dtype: torch.dtype
    ) -> Any:
        rows = [torch.tensor([*head, *tail], dtype=dtype) for head, tail in zip(before, after, strict=True)]
        return pad_rows(rows, width)

    blank = [[0] * start for start in starts]
    token_ids = lay_out([r.token_ids for r in responses], [p.token_ids for p in owners], torch.long)
    numbers = [[1] * len(r.token_ids) if r.turns is None else r.turns for r in responses]
    turns = lay_out(numbers, blank, torch.long)
    supports = [response.candidates for response in responses if response.candidates is not None]
    assert len(supports) in (0, len(responses)), "all responses of a rollout are drawn in one way"
    tops = [response.top for response in responses if response.top is not None]
    top_tokens, top_logprobs = lay_out_top(tops, starts, width) if tops else (None, None)
    return Rollout(
        token_ids=token_ids,
        loss_mask=turns > 0,
        sampling_logprobs=lay_out([r.logprobs for r in responses], blank, torch.float32),
        group_ids=torch.arange(len(prompts)).repeat_interleave(group_size),
        prompts=owners,
        responses=[r.text for r in responses],
        token_ends=[r.token_ends for r in responses],
        truncated=torch.tensor([r.truncated for r in responses]),
        policy_version=policy_version,
        temperature=temperature,
        turns=None if responses[0].turns is None else turns,
        candidates=lay_out_support(supports, starts, width) if supports else None,
        top_tokens=top_tokens,
        top_logprobs=top_logprobs,
    )


def without_prompts(rollout: Rollout) -> dict[str, Any]:
    """The content of a rollout, for a receiver that has its prompts."""
    return {name: value for name, value in vars(rollout).items() if name != "prompts"}


def with_prompts(prompts: Sequence[Prompt], group_size: int, content: dict[str, Any]) -> Rollout:
    """The rollout of a content that `without_prompts` made."""
    return Rollout(prompts=repeated(prompts, group_size), **content)
