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
    seeds = dict.fromkeys(run.seed for group in groups for run in group.runs)
    for seed in seeds:
        records = {group.name: first_records(group, seed) for group in groups}
        records = {name: found for name, found in records.items() if found}
        common = [
            k for k in next(iter(records.values()), {}) if all(k in found for found in records.values())
        ]
        if len(records) < 2 or not common:
            continue
        last = max(iteration for iteration, _ in common)
        keys = [key for key in common if key[0] == last][:count]
        return [
            Dialogue(
                prompt,
                next(iter(records.values()))[iteration, prompt]["answer"],
                seed,
                iteration,
                tuple(response_of(name, found[iteration, prompt]) for name, found in records.items()),
            )
            for iteration, prompt in keys
        ]
    return []


def first_records(group: Group, seed: str) -> dict[tuple[int, str], dict[str, Any]]:
    """(iteration, prompt) -> its first record in the group's run of a seed."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for run in group.runs:
        for record in run.samples() if run.seed == seed else ():
            found.setdefault((record["iteration"], record["prompt"]), record)
    return found


def response_of(group: str, record: dict[str, Any]) -> GroupResponse:
    """A record as one group's response."""
    return GroupResponse(group, record["response"], record["reward"], record["truncated"])
