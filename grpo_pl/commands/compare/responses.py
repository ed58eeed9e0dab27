"""What the groups answered to the same prompt."""

from dataclasses import dataclass
from typing import Any

from grpo_pl.commands.compare.groups import Group

COUNT = 4


@dataclass(frozen=True)
class GroupResponse:
    """One group's."""

    group: str
    text: str
    reward: float | None
    truncated: bool


@dataclass(frozen=True)
class Dialogue:
    """A prompt, and what each group's run of one seed answered in the same iteration."""

    prompt: str
    answer: str
    seed: str
    iteration: int
    responses: tuple[GroupResponse, ...]


def side_by_side(groups: list[Group], count: int = COUNT) -> list[Dialogue]:
    """The first response of each group to the first prompts of the last iteration that two or more share.

    Of the first seed for which there are such; empty where no two groups have a record of the same prompt in
    the same iteration.
    """
    for seed in dict.fromkeys(run.seed for group in groups for run in group.runs):
        records = {group.name: first for group in groups if (first := first_records(group, seed))}
        first, *others = records.values() or [{}]
        common = [key for key in first if all(key in other for other in others)]
        if others and common:
            last = max(iteration for iteration, _ in common)
            return [
                Dialogue(
                    prompt,
                    first[last, prompt]["answer"],
                    seed,
                    last,
                    tuple(response_of(name, own[last, prompt]) for name, own in records.items()),
                )
                for iteration, prompt in common
                if iteration == last
            ][:count]
    return []


def first_records(group: Group, seed: str) -> dict[tuple[int, str], dict[str, Any]]:
    """(iteration, prompt) -> its first record in the group's run of a seed."""
    first: dict[tuple[int, str], dict[str, Any]] = {}
    for run in group.runs:
        for record in run.samples() if run.seed == seed else ():
            first.setdefault((record["iteration"], record["prompt"]), record)
    return first


def response_of(group: str, record: dict[str, Any]) -> GroupResponse:
    """A record as one group's response."""
    return GroupResponse(group, record["response"], record["reward"], record["truncated"])
