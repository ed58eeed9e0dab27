"""The responses of groups to the same prompts."""

from dataclasses import dataclass
from typing import Any

from grpo_pl.commands.compare.groups import Group
from grpo_pl.types import in_words

COUNT = 4


@dataclass(frozen=True)
class GroupResponse:
    """The response of one group."""

    group: str
    text: str
    reward: float | None
    truncated: bool


@dataclass(frozen=True)
class Dialogue:
    """A prompt with the response of each group's run of one seed in the same iteration."""

    prompt: str
    answer: str
    seed: str
    iteration: int
    responses: tuple[GroupResponse, ...]


def side_by_side(groups: list[Group], count: int = COUNT) -> list[Dialogue]:
    """The first response of each group to the first prompts of the last iteration that its runs share.

    The runs are of the first seed with such an iteration; empty where no two groups have a record of the same
    prompt in the same iteration.
    """
    for seed in dict.fromkeys(run.seed for group in groups for run in group.runs):
        records = {group.name: first for group in groups if (first := first_records(group, seed))}
        first, *others = records.values() or [{}]
        common = [key for key in first if all(key in other for other in others)]
        if others and common:
            last = max(iteration for iteration, _ in common)
            prompts = [prompt for iteration, prompt in common if iteration == last][:count]
            return [
                Dialogue(
                    prompt,
                    first[last, prompt]["answer"],
                    seed,
                    last,
                    tuple(response_of(name, of_group[last, prompt]) for name, of_group in records.items()),
                )
                for prompt in prompts
            ]
    return []


def first_records(group: Group, seed: str) -> dict[tuple[int, str], dict[str, Any]]:
    """(iteration, prompt) -> its first record in the group's run of a seed."""
    first: dict[tuple[int, str], dict[str, Any]] = {}
    for run in group.runs:
        for record in run.samples() if run.seed == seed else ():
            first.setdefault((record["iteration"], record["prompt"]), record)
    return first


def response_of(group: str, record: dict[str, Any]) -> GroupResponse:
    """A record as one group's response: an episode as a dialogue."""
    said = in_words(record.get("transcript", [])) or record["response"]
    return GroupResponse(group, said, record["reward"], record["truncated"])
