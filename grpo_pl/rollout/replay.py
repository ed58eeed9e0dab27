"""An engine that answers from files: the same rollouts for any loss."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, final

import torch
from typing_extensions import override

from grpo_pl.rollout.assembly import Response, assemble_rollout
from grpo_pl.rollout.engine import OfflineEngine, SamplingConfig, check_top_logprobs
from grpo_pl.rollout.parquet import Group, files_of, groups_in, read_groups
from grpo_pl.system.refusal import ArgumentError, ConfigError
from grpo_pl.types import Prompt, Rollout


@final
class ReplayEngine(OfflineEngine):
    """Answers from files of `data.keep_rollouts` or `rollout`, whatever the weights.

    The data settings and `data.seed` must be those of sampling, for they determine the prompts. Groups may be
    smaller (the first responses of each are taken), and the schedule of updates another.

    Args:
        path: A folder of such files, or one of them.
        pretrained: Unused; every engine has it.
    """

    def __init__(self, path: str, pretrained: str = "") -> None:
        self.path, self.pretrained = path, pretrained
        self._files: dict[Group, Path] = {}
        self._sizes: Counter[Group] = Counter()
        self._open: dict[Path, dict[Group, list[dict[str, Any]]]] = {}

    @override
    def check_sampling(self, sampling: SamplingConfig) -> None:
        """What was drawn is in the files: `look_up` compares. The likeliest tokens are not."""
        check_top_logprobs(sampling, self, most=0)

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        files = files_of(Path(self.path))
        if not files:
            raise ArgumentError(f"path={self.path} has no .parquet file in it: name another folder", self)
        for file in files:
            try:
                groups = groups_in(file)
            except ConfigError as error:
                raise ArgumentError(f"path: {error}", self) from error
            self._files |= dict.fromkeys(groups, file)
            self._sizes.update(groups)

    @override
    def check(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> None:
        for prompt in prompts:
            self._refuse_unless(self._sizes[sampling.temperature, prompt.seed], prompt, group_size, sampling)

    @override
    def look_up(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        self.check(prompts, group_size, sampling)
        needed = {self._files[sampling.temperature, prompt.seed] for prompt in prompts}
        self._open = {file: self._open.get(file) or read_groups(file) for file in needed}
        rows = [row for prompt in prompts for row in self._group(prompt, group_size, sampling)]
        kept = Response.__annotations__.keys() - {"top"}  # refused by `check`
        responses = [Response(**{key: row[key] for key in kept}) for row in rows]
        version = min((row["policy_version"] for row in rows), default=0)
        rollout = assemble_rollout(
            prompts, responses, policy_version=version, temperature=sampling.temperature
        )
        rollout.prompts = [as_opened(p, row) for p, row in zip(rollout.prompts, rows, strict=True)]
        return rollout

    def _group(self, prompt: Prompt, group_size: int, sampling: SamplingConfig) -> list[dict[str, Any]]:
        group = sampling.temperature, prompt.seed
        rows = self._open[self._files[group]][group]
        asked = [row.get("asked_token_ids", row["prompt_token_ids"]) for row in rows]
        same = [row for row, token_ids in zip(rows, asked, strict=True) if token_ids == prompt.token_ids]
        episodes = list(dict.fromkeys(row.get("episode", n) for n, row in enumerate(same)))
        self._refuse_unless(len(episodes), prompt, group_size, sampling)
        same = [row for n, row in enumerate(same) if row.get("episode", n) in episodes[:group_size]]
        if any((row["candidates"] is not None) != sampling.truncates for row in same):
            kept = "says for no token which others could be drawn" if sampling.truncates else "was truncated"
            raise ArgumentError(
                f"path={self.path} has a response whose sampling {kept}, and data.sampling has "
                f"top_p={sampling.top_p:g} and top_k={sampling.top_k}: set them to those that it was sampled "
                "with",
                self,
            )
        turns = [row.get("turns", [1] * len(row["token_ids"])) for row in same]
        longest = max(row.count(turn) for row in turns for turn in {*row} - {0})
        if longest > sampling.max_tokens:
            raise ArgumentError(
                f"path={self.path} has a response of {longest} tokens, and data.sampling.max_tokens is "
                f"{sampling.max_tokens}: set that to {longest}, or to what it was sampled with",
                self,
            )
        return same

    def _refuse_unless(self, count: int, prompt: Prompt, group_size: int, sampling: SamplingConfig) -> None:
        if count < group_size:
            raise ArgumentError(
                f"path={self.path} has {count} responses at temperature {sampling.temperature} "
                f"to the prompt {prompt.text[:40]!r} and {group_size} are asked for: train with the data "
                "settings and the data.seed that it was sampled with, and for no more iterations",
                self,
            )

    @override
    def shutdown(self) -> None:
        self._files, self._sizes, self._open = {}, Counter(), {}


def as_opened(prompt: Prompt, row: dict[str, Any]) -> Prompt:
    """The prompt of a response: an environment may have opened the episode with words of its own."""
    if row["prompt_token_ids"] == prompt.token_ids:
        return prompt
    messages = [*takewhile(lambda message: message["role"] != "assistant", row["row"].transcript)]
    words = {"token_ids": row["prompt_token_ids"], "messages": messages, "text": messages[-1]["content"]}
    return replace(prompt, asked=prompt.token_ids, **words)
