"""A generator as a data set."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch.utils.data import IterableDataset
from typing_extensions import override

T = TypeVar("T", covariant=True)


class Stream(IterableDataset[T], Generic[T]):
    """A data set that is a generator of known length: without one, Lightning would sample a rollout ahead."""

    def __init__(self, generate: Callable[[], Iterator[T]], length: int) -> None:
        self.generate, self.length = generate, length

    @override
    def __iter__(self) -> Iterator[T]:
        return self.generate()

    def __len__(self) -> int:
        """Batches in one pass."""
        return self.length
