"""Groups runs that differ in nothing but their seed; one group is the base of all comparisons."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from grpo_pl.commands.compare.differences import Difference, differences, fingerprint, settings
from grpo_pl.commands.compare.runs import Run
from grpo_pl.system.refusal import ConfigError

MAX_IN_NAME = 2


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, each with another seed."""

    name: str
    runs: tuple[Run, ...]
    differences: tuple[Difference, ...] = ()
    """From the base."""

    @property
    def finished(self) -> dict[str, Run]:
        """Seed -> its finished run."""
        return {run.seed: run for run in self.runs if run.finished}


def group_runs(runs: Iterable[Run], base: str | None = None) -> list[Group]:
    """Group runs by their settings, and in a study by variant too; the base comes first.

    A group has its variant's name; outside a study, a name from its differences to the base.

    Args:
        runs: All runs.
        base: The name of the base, or the folder of one of its runs; None for the first group.

    Raises:
        ConfigError: If there is no such base, or if two runs of a group have the same seed.
    """
    alike: dict[tuple[str, str], list[Run]] = {}
    unstarted: list[Run] = []
    for run in runs:
        where = alike.setdefault((variant(run), fingerprint(run)), []) if run.config else unstarted
        where.append(run)
    groups = [Group(name, tuple(members)) for (name, _), members in alike.items()]
    for group in groups:
        refuse_repeated_seeds(group)
    if not groups and base is None:
        raise ConfigError("compare: no run has started: none of the folders has a config.yaml")
    first = next((group for group in groups if base is None or is_base(group, base)), None)
    if first is None:
        raise ConfigError(f"compare: --base {base}: no such group; {known(groups)}")
    ordered = [first, *(group for group in groups if group is not first)]
    compared = [replace(group, differences=differences_of(group, first)) for group in ordered]
    return named(with_unstarted(compared, unstarted))


def variant(run: Run) -> str:
    """The run's variant; empty outside a study."""
    return run.place.variant if run.place else ""


def differences_of(group: Group, base: Group) -> tuple[Difference, ...]:
    """The group's differences from the base."""
    return tuple(differences(settings(base.runs[0]), settings(group.runs[0])))


def is_base(group: Group, base: str) -> bool:
    """Whether `--base` names this group, or a folder of its runs."""
    return group.name == base or any(run.folder.resolve() == Path(base).resolve() for run in group.runs)


def known(groups: list[Group]) -> str:
    """The possible values of `--base`."""
    names = list(dict.fromkeys(g.name for g in groups if g.name))
    return f"there are {', '.join(names)}" if names else "name the folder of one of its runs"


def refuse_repeated_seeds(group: Group) -> None:
    """Refuse runs with the same seed, which are not independent repetitions."""
    first: dict[str, Run] = {}
    for run in group.runs:
        if run.seed in first:
            raise ConfigError(
                f"compare: {first[run.seed].folder} and {run.folder} have the same settings and the same "
                f"seed ({run.seed}): name one of them"
            )
        first[run.seed] = run


def with_unstarted(groups: list[Group], runs: list[Run]) -> list[Group]:
    """The groups with the runs that never started: each in its variant's group, or in a new one."""
    for run in runs:
        at = next((i for i, g in enumerate(groups) if g.name == variant(run)), None)
        if at is None:
            groups.append(Group(variant(run), (run,)))
        else:
            groups[at] = replace(groups[at], runs=(*groups[at].runs, run))
    return groups


def named(groups: list[Group]) -> list[Group]:
    """The groups with unique names."""
    taken: set[str] = set()
    out: list[Group] = []
    for group in groups:
        name = group.name or ("base" if not out else difference_name(group))
        if name in taken and group.differences:
            name = f"{group.name} ({difference_name(group)})" if group.name else name
        unique, n = name, 1
        while unique in taken:
            n += 1
            unique = f"{name} ({n})"
        taken.add(unique)
        out.append(replace(group, name=unique))
    return out


def difference_name(group: Group) -> str:
    """The group's first differences from the base, and the number of the others."""
    more = max(len(group.differences) - MAX_IN_NAME, 0)
    return ", ".join(d.short for d in group.differences[:MAX_IN_NAME]) + (f" +{more}" if more else "")
