"""Prompts without a tokenizer, and rollouts of them whose rewards are given."""

from collections.abc import Mapping, Sequence

import torch

from grpo_pl.prompts import PromptSet
from grpo_pl.rollout.assembly import Response, assemble_rollout
from grpo_pl.types import Prompt, Rollout, SampleRecord


class Numbered(PromptSet):
    """Prompts whose text is the number of their row."""

    def __init__(self, size: int) -> None:
        self.rows = [Prompt(token_ids=[row], text=str(row), answer="", row=row) for row in range(size)]


def answered(prompts: Sequence[Prompt], group_size: int = 1) -> Rollout:
    """A rollout with responses of one token."""
    response = Response(token_ids=[7], logprobs=[-1.0], text="x", truncated=False, token_ends=[1])
    responses = [response] * (len(prompts) * group_size)
    return assemble_rollout(prompts, responses, policy_version=0, temperature=1.0)


def records(rewards: Sequence[Mapping[str, float | None]]) -> list[SampleRecord]:
    """The records of responses with these rewards, which weigh 1."""

    def total(given: Mapping[str, float | None]) -> float | None:
        known = [reward for reward in given.values() if reward is not None]
        return sum(known) if len(known) == len(given) else None

    return [
        SampleRecord(
            prompt="",
            answer="",
            response="",
            response_tokens=1,
            truncated=False,
            rewards=dict(given),
            reward=total(given),
            advantage=0.0,
        )
        for given in rewards
    ]


def verdicts(rights: Sequence[bool]) -> list[SampleRecord]:
    """The records of responses that are right or not."""
    return records([{"correct": float(right)} for right in rights])


def doubled(total: torch.Tensor) -> torch.Tensor:
    """The sum over two ranks that have counted the same."""
    return 2 * total
