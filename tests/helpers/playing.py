"""Episodes on an engine that runs, and a random model whose turns are short."""

import json
import shutil
from pathlib import Path
from typing import Any

from grpo_pl.environments.base import Environment
from grpo_pl.environments.sessions import Failure, Sessions
from grpo_pl.prompts.chat import ChatFormat
from grpo_pl.rollout.engine import SamplingConfig, SamplingEngine
from grpo_pl.rollout.environment import EnvironmentEngine
from grpo_pl.rollout.limits import Episodes
from grpo_pl.types import Prompt, Rollout, Said, Turn

SAMPLING = SamplingConfig(max_tokens=24, temperature=1.0)
ENDS = [2, *range(40, 90)]
"""Tokens that end a turn, so many that turns of a random model have six tokens."""


def talkative(folder: Path, to: Path) -> Path:
    """A copy of a model whose turns end soon."""
    shutil.copytree(folder, to)
    path = to / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ENDS}))
    return to


def answers(
    environment: Environment | Sessions, prompt: Prompt, *said: str | Said, seed: int = 0
) -> list[Turn | Failure]:
    """What an environment opens with, and answers to each turn of a policy; sessions that run stay open."""
    given = isinstance(environment, Sessions)
    sessions = environment if given else Sessions(environment, timeout_s=60.0, memory_gib=2.0, processes=1)
    try:
        sessions.reset(0, prompt, seed)
        found = sessions.answers(60.0)
        for each in said:
            sessions.step(0, each if isinstance(each, Said) else Said(text=each, raw=each))
            found += sessions.answers(60.0)
    finally:
        sessions.end(0) if given else sessions.close()
    return [answer for _, answer in found]


def play(
    engine: SamplingEngine,
    environment: Environment,
    asked: list[Prompt],
    group_size: int = 2,
    sampling: SamplingConfig = SAMPLING,
    format: ChatFormat = ChatFormat(),
    **limits: Any,
) -> Rollout:
    """The rollout of an environment on an engine that runs."""
    playing = EnvironmentEngine(
        engine, environment, Episodes(**{"tokens": 200} | limits), format, max_prompt_tokens=64
    )
    playing.open()
    try:
        return playing.generate(asked, group_size, sampling)
    finally:
        playing.close()
