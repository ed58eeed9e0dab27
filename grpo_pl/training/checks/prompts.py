"""Checks that prompts go with the model, the rewards and the verifiers, and with the run that they resume."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from grpo_pl.models.loading import (
    context_length,
    eos_token_ids,
    mended_generation_config,
    vocabulary_size,
)
from grpo_pl.prompts.curriculum import Curriculum
from grpo_pl.prompts.fingerprint import change
from grpo_pl.prompts.notices import notices
from grpo_pl.prompts.pass_rates import Right
from grpo_pl.prompts.prompt_set import PromptSet
from grpo_pl.rewards.base import RewardFunction, Verifier
from grpo_pl.rewards.signatures import columns_of
from grpo_pl.system.refusal import ArgumentError, ConfigError
from grpo_pl.types import Prompt

log = logging.getLogger(__name__)


def check_context(pretrained: str, prompt_tokens: int, response_tokens: int, plays: bool) -> None:
    """Refuse prompts that are with responses, or the episodes that one plays, longer than the context."""
    context = context_length(pretrained)
    if prompt_tokens + response_tokens > context:
        one, other = "responses", "data.sampling.max_tokens (or data.val_max_tokens)"
        if plays:
            one, other = "episodes", "data.episodes.tokens"
        raise ConfigError(
            f"data.max_prompt_tokens={prompt_tokens} plus {one} of {response_tokens} tokens do not fit the "
            f"model's context of {context}: make data.max_prompt_tokens and {other} add up to at most "
            f"{context}"
        )


def warn_of_settings(pretrained: str) -> None:
    """Warn of a model whose responses never end by themselves, or whose settings `export` has to change."""
    if not eos_token_ids(pretrained):
        log.warning(
            "pretrained=%s names no token that ends a response: all will have data.sampling.max_tokens",
            pretrained,
        )
    if mended := mended_generation_config(pretrained)[1]:
        log.warning("%s", mended)


def check_enough(key: str, count: int, ranks: int) -> None:
    """Refuse fewer prompts than ranks."""
    if count < ranks:
        raise ConfigError(f"{key} has {count} prompts for {ranks} ranks: give it at least {ranks}")


def check_vocabulary(pretrained: str, key: str, prompts: Sequence[Prompt]) -> None:
    """Refuse tokens that the model does not know."""
    known = vocabulary_size(pretrained)
    for prompt in prompts:
        if (token := max(prompt.token_ids)) >= known:
            raise ConfigError(
                f"{key}: a prompt has the token {token}, and the model knows {known}: the "
                f"tokenizer of {pretrained} is not the model's: give a folder where they fit"
            )


def check_prompts(prompts: PromptSet, pretrained: str, ranks: int) -> None:
    """Refuse prompts that do not fit ranks or model; log how many there are, and what to know of them."""
    check_enough(prompts.key, len(prompts), ranks)
    check_vocabulary(pretrained, prompts.key, prompts.rows)
    log.info(
        "%s: %d prompts, %d over %d tokens (data.long_prompts: %s)",
        *(prompts.key, len(prompts), prompts.num_long, prompts.max_prompt_tokens, prompts.long_prompts),
    )
    for notice in notices(prompts, eos_token_ids(pretrained)):
        log.info("! %s", notice)


def check_unchanged(
    state: Mapping[str, Any], now: Mapping[str, PromptSet], on_change: Literal["error", "warn"]
) -> None:
    """Compare prompts with those of a checkpoint by the state that their data module has saved in it."""
    before = state.get("prompts", {})  # checkpoints of old versions have none
    for name in sorted(before.keys() & now.keys()):
        if sentence := change(now[name].key, before[name], now[name].fingerprint):
            if on_change == "error":
                raise ConfigError(f"{sentence}, or set data.changed_prompts to warn and go on with these")
            log.warning("! %s", sentence.rpartition(": ")[0])


def check_curriculum(curriculum: Curriculum | None, lookahead: int) -> None:
    """Refuse pass rates that are not known yet when an engine that samples ahead asks for prompts."""
    if curriculum is not None and curriculum.delay is not None and curriculum.delay < lookahead:
        raise ArgumentError(
            f"delay={curriculum.delay}: the engine samples {lookahead} iterations ahead: set it to at least "
            f"{lookahead}, or to null",
            curriculum,
        )


def check_right(right: Right, rewards: Sequence[str]) -> None:
    """Refuse pass rates by a reward that there is not."""
    if right.by is not None and right.by not in rewards:
        raise ConfigError(
            f"data.pass_rates.by={right.by}: model.rewards has {', '.join(rewards) or 'none'}: name one of "
            "these, or null for their sum"
        )


def check_answers(
    kind: str, functions: Mapping[str, RewardFunction | Verifier], key: str, prompts: Sequence[Prompt]
) -> None:
    """Refuse prompts that a function can never score, for want of a column or an answer that it can read.

    Looks at up to 256 of them.
    """
    some = prompts[:: max(len(prompts) // 256, 1)]
    columns = frozenset(column for prompt in some for column in columns_of(prompt))
    for name, function in functions.items():
        function.check_columns(columns)
        if not any(function.can_score(prompt) for prompt in some):
            raise ConfigError(
                f"{kind}.{name}: {type(function).__name__} can read none of the answers of {key} (for "
                f"instance {some[0].answer!r}): check the answer column of {key}, or choose another function"
            )
