"""An engine that never says the same twice, as servers and half-precision engines do."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import final

from typing_extensions import override

from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.wrapper import EngineWrapper
from grpo_pl.types import Prompt, Rollout


@final
class Unsteady(EngineWrapper):
    """Samples with seeds of its own."""

    def __init__(self, pretrained: str = "") -> None:
        super().__init__(InProcessEngine(pretrained))

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        others = [replace(prompt, seed=int.from_bytes(os.urandom(7))) for prompt in prompts]
        rollout = super().generate(others, group_size, sampling)
        asked = [prompt for prompt in prompts for _ in range(group_size)]
        return replace(rollout, prompts=asked, metrics={"rollout/retried": 0.1})
