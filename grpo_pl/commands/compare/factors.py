"""The factors of a factorial study, read from the names of its groups."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
from jaxtyping import Float

from grpo_pl.commands.compare.cells import cell_levels, cell_name
from grpo_pl.commands.compare.statistics.factorial import FactorEffect, contrasts, factor_effects

OnProblems = Callable[[Sequence[tuple[str, str]]], Float[np.ndarray, "runs P"] | None]
"""(Group, seed) of runs -> their outcomes on each problem; None where not all have them."""


def effects_of_factors(
    values: Mapping[str, Mapping[str, float]],
    margin: float | None,
    on_problems: OnProblems = lambda _: None,
) -> tuple[list[FactorEffect], list[str]]:
    """Main effects and interactions of factors, from the seeds that all combinations of levels have.

    Args:
        values: Group -> seed -> outcome; the base first.
        margin: The largest difference that does not matter; None declares none.
        on_problems: The outcomes of these runs on each problem, if all have verdicts.

    Returns:
        The effects, none for a study of another design, and remarks on what is not in them.
    """
    levels = {name: cell_levels(name) for name in values}
    base = levels[next(iter(values))]
    cells = {name: cell for name, cell in levels.items() if base and cell.keys() == base.keys()}
    factors = {factor: list(dict.fromkeys(cell[factor] for cell in cells.values())) for factor in base}
    if len(cells) < 2:
        return [], []
    remarks = [
        f"{name} is no combination of the factors {', '.join(base)}." for name in values if name not in cells
    ]
    whole = [cell_name(dict(zip(factors, chosen, strict=True))) for chosen in product(*factors.values())]
    if missing := [name for name in whole if name not in cells]:
        return [], [*remarks, f"{missing[0]} was not run: without it there are no effects of factors."]
    seeds = list(dict.fromkeys(seed for name in whole for seed in values[name]))
    blocks = [seed for seed in seeds if all(seed in values[name] for name in whole)]
    if broken := [seed for seed in seeds if seed not in blocks]:
        remarks.append(
            f"Seed {', '.join(broken)}: not all combinations have it, so it is not in the effects of factors."
        )
    if not blocks:
        return [], remarks
    shape = (len(blocks), *map(len, factors.values()))
    outcomes = np.array([[values[name][seed] for name in whole] for seed in blocks]).reshape(shape)
    each = on_problems([(name, seed) for seed in blocks for name in whole])
    each = None if each is None else each.reshape(*shape, -1)
    return factor_effects(outcomes, contrasts(factors), margin, each), remarks
