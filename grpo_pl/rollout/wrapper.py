"""The base of engines that wrap another one."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from grpo_pl.rollout.engine import Demand, EngineMemory, RolloutEngine, SamplingConfig
from grpo_pl.types import Prompt, Rollout


class EngineWrapper(RolloutEngine):
    """An engine around another one, to which it forwards what a subclass does not override."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine = engine
        self.pretrained, self.head_dtype = engine.pretrained, engine.head_dtype

    @property
    @override
    def weights_dtype(self) -> torch.dtype | None:
        return self.engine.weights_dtype

    @property
    @override
    def ranks(self) -> int:
        return self.engine.ranks

    @property
    @override
    def lookahead(self) -> int:
        return self.engine.lookahead

    @property
    @override
    def offline(self) -> bool:
        return self.engine.offline

    @override
    def check_sampling(self, sampling: SamplingConfig) -> None:
        self.engine.check_sampling(sampling)

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        self.engine.start(max_sequence_tokens=max_sequence_tokens, max_sequences=max_sequences, device=device)

    @override
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.engine.load_weights(weights, version)

    @override
    def check(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> None:
        self.engine.check(prompts, group_size, sampling)

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        return self.engine.generate(prompts, group_size, sampling)

    @override
    def prefetch(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> None:
        self.engine.prefetch(prompts, group_size, sampling)

    @override
    def rest(self) -> None:
        self.engine.rest()

    @override
    def wait(self) -> None:
        self.engine.wait()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.engine.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.engine.load_state_dict(state)

    @override
    def shutdown(self) -> None:
        self.engine.shutdown()

    @override
    def memory(self, demand: Demand, device: torch.device) -> EngineMemory:
        return self.engine.memory(demand, device)
