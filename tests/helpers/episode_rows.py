"""Rollouts of episodes: turns with observations between them, in one row or forked into several."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from grpo_pl.rollout.assembly import EpisodeRow, Response, assemble_rollout
from grpo_pl.types import Outcome, Prompt, Rollout, Stop

OBSERVED, FORKED = 900, 901
"""What stands between two turns, and what begins a forked history."""


def episode(
    number: int,
    prompt: Sequence[int],
    turns: Sequence[Sequence[int]],
    rewards: Sequence[float],
    *,
    forks: bool = False,
    stop: Stop = "done",
    outcome: Outcome = "score",
) -> list[Response]:
    """The rows of an episode; token n is written as letter n % 26, the last of a turn as nothing.

    Unforked it is one row. Forked, each later turn has a row of its own, which begins with another prompt and
    has the turns before as its context.
    """
    row, seen = [*prompt], list[int](prompt)
    marks = [0] * len(row)
    rows: list[tuple[list[int], list[int]]] = []
    for k, said in enumerate(turns):
        if k and forks:
            rows.append((row, marks))
            row = [FORKED, *seen]
            marks = [0] * len(row)
        if k:
            row, marks, seen = [*row, OBSERVED], [*marks, 0], [*seen, OBSERVED]
        row, marks, seen = [*row, *said], [*marks, *[k + 1] * len(said)], [*seen, *said]
    rows.append((row, marks))
    transcript: list[dict[str, Any]] = [{"role": "user", "content": f"episode {number}"}]
    return [
        response(ids, of, number=number, stop=stop, outcome=outcome, rewards=rewards, transcript=transcript)
        for ids, of in rows
    ]


def response(
    ids: list[int], turns: list[int], *, number: int, rewards: Sequence[float], **of: Any
) -> Response:
    """One row as the engine gives it."""
    sampled = [(token, turn) for token, turn in zip(ids, turns, strict=True) if turn]
    text, ends = "", list[int]()
    for i, (token, turn) in enumerate(sampled):
        if i and sampled[i - 1][1] != turn:
            text += "\n"
        is_last = i + 1 == len(sampled) or sampled[i + 1][1] != turn
        text += "" if is_last else chr(97 + token % 26)
        ends.append(len(text))
    return Response(
        token_ids=[token for token, _ in sampled],
        logprobs=[-math.log(2 + token) for token, _ in sampled],
        text=text,
        truncated=of["stop"] == "turn_tokens",
        token_ends=ends,
        row=EpisodeRow(token_ids=ids, turns=turns, episode=number, turn_rewards=list(rewards), **of),
    )


def rollout(prompts: Sequence[Prompt], rows: Sequence[Response]) -> Rollout:
    return assemble_rollout(prompts, rows, policy_version=3, temperature=1.0)


def assert_same(a: Rollout, b: Rollout) -> None:
    for field in fields(Rollout):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        assert same, field.name
