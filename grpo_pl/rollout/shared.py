"""Shares rollouts among ranks that need the same one, or that share an engine."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import distributed
from typing_extensions import override

from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.wrapper import EngineWrapper
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Rollout


class SharedEngine(EngineWrapper):
    """An engine that neighbouring ranks share and call at once.

    Ranks that compute each layer together (tensor parallelism of the trainer) ask for the same prompts: all
    get the first rank's rollout, for no engine on a GPU repeats itself to the last bit. Ranks of one engine
    (its tensor parallelism) ask for different prompts: it gets all of them, and each rank keeps its own
    responses.

    The ranks of `group` share rollouts, or one engine if `together`.
    """

    def __init__(self, engine: RolloutEngine, group: distributed.ProcessGroup, together: bool) -> None:
        super().__init__(engine)
        self.group, self.together = group, together

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        if not self.together:
            first = distributed.get_global_rank(self.group, 0)
            is_first = distributed.get_rank(self.group) == 0
            box = [self.engine.generate(prompts, group_size, sampling) if is_first else None]
            distributed.broadcast_object_list(box, src=first, group=self.group)
            assert box[0] is not None
            return box[0]
        every: list[Sequence[Prompt]] = [[]] * distributed.get_world_size(self.group)
        distributed.all_gather_object(every, list(prompts), group=self.group)
        everything = [prompt for of_rank in every for prompt in of_rank]
        before = sum(len(of_rank) for of_rank in every[: distributed.get_rank(self.group)])
        return part(self.engine.generate(everything, group_size, sampling), before, len(prompts))

    @property
    @override
    def ranks(self) -> int:
        return 1

    @override
    def prefetch(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> None:
        if self.together or distributed.get_rank(self.group) == 0:
            self.engine.prefetch(prompts, group_size, sampling)


def shared(engine: RolloutEngine, copies: int, rank: int, world_size: int) -> RolloutEngine:
    """The engine as it is, or shared with neighbouring ranks; refuses ranks that do not divide. Collective.

    `copies` is the number of neighbouring ranks that need the same rollouts.
    """
    size = max(copies, engine.ranks)
    if size == 1 or copies == engine.ranks:
        return engine
    if (copies > 1 and engine.ranks > 1) or world_size % size:
        raise ArgumentError(
            f"tensor_parallel_size={engine.ranks} does not go with {world_size} ranks of which "
            f"{copies} compute each layer together: set it to 1",
            engine,
        )
    groups = [
        distributed.new_group(list(range(first, first + size)), backend="gloo")
        for first in range(0, world_size, size)
    ]
    return SharedEngine(engine, groups[rank // size], together=engine.ranks > 1)


def part(rollout: Rollout, first: int, groups: int) -> Rollout:
    """Some groups of a rollout, counted from 0 again, without the columns that no sequence of them fills."""
    rows = ((rollout.group_ids >= first) & (rollout.group_ids < first + groups)).nonzero()[:, 0]
    chosen = rows.tolist()
    lengths = rollout.lengths
    width = max((lengths[row] for row in chosen), default=0)

    def cut(column: Any) -> Any:
        if isinstance(column, list):
            return [column[row] for row in chosen]
        return column[rows, :width] if column.ndim > 1 else column[rows]

    pieces = {name: cut(column) for name, column in rollout.columns.items()}
    return replace(rollout, **pieces | {"group_ids": pieces["group_ids"] - first})
