"""Assembles Rollouts from the responses of an engine, and passes them between processes and files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from tokenizers.decoders import DecodeStream
from torch import Tensor

from grpo_pl.functional import pad_rows
from grpo_pl.rollout.support import lay_out_support
from grpo_pl.rollout.top_logprobs import lay_out_top
from grpo_pl.types import Message, Outcome, Prompt, Rollout, Stop


@dataclass(kw_only=True)
class EpisodeRow:
    """A row of an episode: its prompt, what the policy said, and what the environment said in between."""

    token_ids: list[int]
    """The whole row, up to the last sampled token: no model reads what comes after it."""
    turns: list[int]
    """The number of the turn of each of these tokens, from 1; 0 where it was not sampled."""
    episode: int
    """Equal for the rows of one episode, several where its history was forked."""
    stop: Stop
    outcome: Outcome
    turn_rewards: list[float]
    """Of all turns of the episode, here and below, whatever this row has of it."""
    transcript: list[Message]


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
    candidates: list[Tensor] | None = None
    """The tokens that each token was drawn from, where sampling truncates; None for the whole vocabulary."""
    top: tuple[Tensor, Tensor] | None = None
    """Ids and log-probabilities of the likeliest tokens at each token, `[L, K]`; None if not asked for."""
    row: EpisodeRow | None = None
    """The row of an episode that it stands in, several turns perhaps; None for the prompt and one answer."""


def token_ends(tokenizer: Any, token_ids: Sequence[int], text: str) -> list[int]:
    """Where in `text` each token's text ends, in characters.

    A token that completes no character ends with the one before it; the last one ends the text.
    """
    stream, ends, end = DecodeStream(skip_special_tokens=True), [], 0
    for token in token_ids:
        try:
            piece = stream.step(tokenizer.backend_tokenizer, token) or ""
        except Exception:  # noqa: BLE001 - bytes that make no character may change what was read before them
            stream = DecodeStream(skip_special_tokens=True)
            piece = stream.step(tokenizer.backend_tokenizer, token) or ""
            end = max(end, text.find(piece, end))
        end += len(piece)
        ends.append(min(end, len(text)))
    return [*ends[:-1], len(text)] if ends else ends


def assemble_rollout(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    *,
    policy_version: int,
    temperature: float,
) -> Rollout:
    """Lay out the G responses to each of P prompts, group after group, as one padded `[N, T]` batch.

    Of forked episodes there are more than G rows to a prompt.
    """
    known = [response.row for response in responses if response.row is not None]
    assert len(known) in (0, len(responses)), "all responses of a rollout are episodes, or none is"
    firsts: dict[int, int] = {}
    numbers = [firsts.setdefault(row.episode, len(firsts)) for row in known] or list(range(len(responses)))
    group_size = (1 + max(numbers)) // len(prompts)
    groups = [number // group_size for number in numbers]
    owners = [prompts[group] for group in groups]
    ids, turns = zip(*(whole(p, r) for p, r in zip(owners, responses, strict=True)), strict=True)
    width = max(map(len, ids))
    turn = pad_rows([torch.tensor(row) for row in turns], width)
    loss_mask = turn > 0
    supports = [response.candidates for response in responses if response.candidates is not None]
    assert len(supports) in (0, len(responses)), "all responses of a rollout are drawn in one way"
    tops = [response.top for response in responses if response.top is not None]
    top_tokens, top_logprobs = lay_out_top(tops, loss_mask) if tops else (None, None)
    return Rollout(
        token_ids=pad_rows([torch.tensor(row) for row in ids], width),
        loss_mask=loss_mask,
        sampling_logprobs=lay_out_logprobs(responses, loss_mask),
        group_ids=torch.tensor(groups),
        prompts=owners,
        responses=[r.text for r in responses],
        token_ends=[r.token_ends for r in responses],
        truncated=torch.tensor([r.truncated for r in responses]),
        policy_version=policy_version,
        temperature=temperature,
        candidates=lay_out_support(supports, loss_mask) if supports else None,
        top_tokens=top_tokens,
        top_logprobs=top_logprobs,
        turns=turn if known else None,
        episodes=torch.tensor(numbers) if known and len(firsts) < len(known) else None,
        stops=[row.stop for row in known],
        outcomes=[row.outcome for row in known],
        turn_rewards=[row.turn_rewards for row in known],
        transcripts=[row.transcript for row in known],
    )


def whole(prompt: Prompt, response: Response) -> tuple[list[int], list[int]]:
    """The tokens of a row, and the turn of each."""
    if response.row is not None:
        return response.row.token_ids, response.row.turns
    before, after = prompt.token_ids, response.token_ids
    return [*before, *after], [0] * len(before) + [1] * len(after)


def lay_out_logprobs(responses: Sequence[Response], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """The log-probabilities of the sampled tokens in their places; 0 where a response has none."""
    logprobs = torch.zeros(mask.shape)
    for row, sampled, response in zip(logprobs, mask, responses, strict=True):
        if response.logprobs:  # else the caller computes them
            row[sampled] = torch.tensor(response.logprobs)
    return logprobs


OPENED = ("token_ids", "text", "messages")
"""What an environment may change of a prompt as it opens an episode."""


def without_prompts(rollout: Rollout) -> dict[str, Any]:
    """The content of a rollout, for a receiver that has its prompts."""
    content = {name: value for name, value in vars(rollout).items() if name != "prompts"}
    if rollout.turns is not None:
        content["opened"] = [{name: getattr(p, name) for name in OPENED} for p in rollout.prompts]
    return content


def with_prompts(prompts: Sequence[Prompt], content: dict[str, Any]) -> Rollout:
    """The rollout of a content that `without_prompts` made."""
    columns = dict(content)
    owners = [prompts[group] for group in columns["group_ids"].tolist()]
    opened = zip(owners, columns.pop("opened", []), strict=False)
    changed = [replace(p, asked=p.token_ids, **new) for p, new in opened] or owners
    same = [old if old == new else new for old, new in zip(owners, changed, strict=True)]
    return Rollout(prompts=same, **columns)
