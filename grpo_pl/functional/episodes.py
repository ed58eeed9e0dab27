"""Rows of forked episodes, and their sampled tokens side by side."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

D = TypeVar("D")


class EpisodeTokens:
    """Moves tensors between `[N, T]` rows and `[E, S]` episodes, which hold the sampled tokens alone.

    An episode whose history was forked has several rows, and each of its tokens was sampled in one of them.
    Rewards, advantages, masks and corrections see it as one sequence: its sampled tokens in order. Entries of
    tokens that were not sampled become 0. Without `episodes` every row is one, and nothing is moved.
    """

    def __init__(self, loss_mask: Bool[Tensor, "N T"], episodes: Int[Tensor, "N"] | None) -> None:
        self.owners: Int[Tensor, "N"] | None = None
        """The episode of each row, counted from 0 in the order of their first rows; None if nothing moves."""
        if episodes is None:
            return
        device, numbers = loss_mask.device, dict[int, int]()
        owners = [numbers.setdefault(episode, len(numbers)) for episode in episodes.tolist()]
        self.owners = torch.tensor(owners, device=device)
        self._firsts = torch.tensor([owners.index(n) for n in range(len(numbers))], device=device)
        rows, columns = loss_mask.nonzero(as_tuple=True)
        owner, order = self.owners[rows].sort(stable=True)
        sizes = owner.bincount(minlength=len(numbers))
        places = torch.arange(len(owner), device=device) - (sizes.cumsum(0) - sizes)[owner]
        self._in_rows, self._in_episodes = (rows[order], columns[order]), (owner, places)
        self._of_rows, self._of_episodes = loss_mask.shape, (len(numbers), int(sizes.max()))

    def together(self, x: D) -> D:
        """A tensor of rows as one of episodes; in a dataclass or dictionary, every tensor."""
        return x if self.owners is None else self._moved(x, gather=True)

    def apart(self, x: D) -> D:
        """The way back: what is of an episode stands at each of its rows."""
        return x if self.owners is None else self._moved(x, gather=False)

    def _moved(self, x: Any, *, gather: bool) -> Any:
        if isinstance(x, dict):
            return {key: self._moved(value, gather=gather) for key, value in x.items()}
        if is_dataclass(x) and not isinstance(x, type):
            return replace(x, **self._moved({f.name: getattr(x, f.name) for f in fields(x)}, gather=gather))
        if not isinstance(x, Tensor):
            return x
        if x.ndim == 1:
            return x[self._firsts if gather else self.owners]
        source, target = (self._in_rows, self._in_episodes)[:: 1 if gather else -1]
        out = x.new_zeros((*(self._of_episodes if gather else self._of_rows), *x.shape[2:]))
        out[target] = x[source]
        return out
