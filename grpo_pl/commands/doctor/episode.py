"""Checks that the chat template can hold an episode, and plays one."""

import time
from collections.abc import Sequence

from grpo_pl.commands.doctor.findings import Finding, fail_if, good, warn_if
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.rollout.environment import EnvironmentEngine, dialogue_of
from grpo_pl.rollout.limits import FAILURES
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt


def check_dialogue(data: RolloutDataModule) -> list[Finding]:
    """How the chat template writes turns and tools; nothing without an environment."""
    if data.environment is None:
        return []
    limits, tools = data.episodes, data.environment.tools
    try:
        changes = dialogue_of(data.pretrained, data.environment, limits, data.plain_format).changes
    except ConfigError as error:
        return [refused("dialogue", error)]
    past = (
        f"changed by the template ({'; '.join(changes)}), {limits.history}" if changes else "left as they are"
    )
    calls = f"{len(tools)} tools, called as {type(limits.calls_format).__name__} writes it; " if tools else ""
    return [good("dialogue", f"{calls}earlier turns are {past}")]


def check_episode(data: RolloutDataModule, prompts: Sequence[Prompt]) -> Finding:
    """One episode on the engine, which runs: how long it was and why it ended."""
    begin = time.perf_counter()
    try:
        playing = data.playing(data.engine)
        if not isinstance(playing, EnvironmentEngine):
            fix = "--data.engine InProcessEngine, or the engine inside of it alone, plays one here"
            return Finding("episode", "warning", "not played: the engine samples in another process", fix)
        playing.open()
        try:
            [episode] = playing.play(prompts[:1], 1, data.sampling)
        finally:
            playing.close()
    except ConfigError as error:
        return refused("episode", error)
    seconds, stop = time.perf_counter() - begin, episode.stop or "done"
    tokens = sum(len(row.token_ids) for row in episode.rows)
    found = (
        f"{len(episode.said)} turns with {episode.calls} calls, {tokens} tokens of which {episode.sampled} "
    )
    found += f"sampled, in {seconds:.1f} s; reward {sum(episode.rewards):g}; it ended with {stop}"
    found += f" ({episode.failure})" if episode.failure else ""
    numbers = {"turns": len(episode.said), "calls": episode.calls, "tokens": tokens}
    if stop == "turn_tokens":
        fix = "raise data.sampling.max_tokens: the environment does not see a turn that it cuts"
        return warn_if(True, "episode", found, fix, **numbers)
    fix = "mend the environment; data.episodes.timeout_s and memory_gib are its limits"
    return fail_if(stop in FAILURES, "episode", found, fix, **numbers)


def refused(check: str, error: ConfigError) -> Finding:
    """A problem from a sentence that ends with what to do."""
    found, _, fix = str(error).rpartition(": ")
    return Finding(check, "problem", found or fix, fix)
