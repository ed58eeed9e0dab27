"""A cache of rollouts on disk: a resumed run learns from the rollouts that it had sampled."""

import hashlib
import io
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from grpo_pl.rollout.assembly import with_prompts, without_prompts
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.overlapped import OverlappedEngine, as_request
from grpo_pl.rollout.wrapper import EngineWrapper
from grpo_pl.system.atomic_files import replacing
from grpo_pl.types import Prompt, Rollout

log = logging.getLogger(__name__)

CHECKSUM_BYTES = hashlib.sha256().digest_size
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@final
class StoredRollouts(EngineWrapper):
    """Keeps each rollout in a file, and returns it for the same request under the same weights.

    So a resumed run does not depend on its engine repeating itself: few do to the last bit, since the rest of
    a batch changes a sequence's rounding. Weights are identified by the sum of their bits, tensor by tensor.
    """

    def __init__(self, engine: RolloutEngine, folder: Path) -> None:
        super().__init__(engine)
        self.folder = folder
        self._version, self._weights = 0, ""

    @override
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        sums: list[tuple[str, Tensor]] = []
        super().load_weights(with_sums(weights, sums), version)
        named = repr([(name, int(bits)) for name, bits in sums])
        self._version, self._weights = version, hashlib.blake2b(named.encode()).hexdigest()

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        request = type(self.engine).__name__, self._weights, as_request(prompts, group_size, sampling)
        digest = hashlib.blake2b(repr(request).encode(), digest_size=8).hexdigest()
        path = self.folder / f"{self._version:08d}-{digest}.rollout"
        kept = read(path) if path.exists() else None
        if kept is not None:
            return with_prompts(prompts, kept)
        rollout = super().generate(prompts, group_size, sampling)
        write(rollout, path)
        return rollout


def write(rollout: Rollout, path: Path) -> None:
    """Write a rollout without its prompts into a file, after its checksum."""
    columns = without_prompts(rollout).items()
    content = io.BytesIO()  # lists as JSON: torch reads a million numbers in a list in 5 s
    torch.save({name: json.dumps(x) if isinstance(x, list) else x for name, x in columns}, content)
    with replacing(path) as file:
        file.write(hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())


def read(path: Path) -> dict[str, Any] | None:
    """The content of a file; None if it is torn."""
    content = path.read_bytes()
    checksum, content = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        log.warning("! %s is torn, and is sampled again", path)
        return None
    every: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return {name: json.loads(x) if isinstance(x, str) else x for name, x in every.items()}


def with_sums(
    weights: Iterable[tuple[str, Tensor]], sums: list[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Pass weights on, and append the sum of each one's bits to `sums`."""
    for name, tensor in weights:
        bits = tensor.detach().contiguous().view(INTEGERS[tensor.itemsize])
        sums.append((name, bits.sum(dtype=torch.int64)))
        yield name, tensor


def stored(engine: RolloutEngine, folder: Path) -> RolloutEngine:
    """The engine with its rollouts cached; one that samples ahead caches in its own process."""
    if isinstance(engine, OverlappedEngine):
        engine.engine = stored(engine.engine, folder)
        return engine
    return engine if engine.offline or isinstance(engine, StoredRollouts) else StoredRollouts(engine, folder)


def forget(folder: Path, before: int) -> None:
    """Remove rollouts sampled after fewer optimizer steps than `before`."""
    for path in folder.glob("*-*.rollout"):
        if int(path.name.partition("-")[0]) < before:
            path.unlink(missing_ok=True)


def forget_all(folder: Path) -> None:
    """Remove all rollouts, and the folder if it is then empty."""
    forget(folder, before=sys.maxsize)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
