"""The encoded prompts of a source, and the order in which training visits them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Literal

from rich.progress import track

from grpo_pl.functional import derive_seed
from grpo_pl.prompts.chat import ChatFormat, Tokenizer
from grpo_pl.prompts.fingerprint import Fingerprint, fingerprint
from grpo_pl.prompts.openings import opened_by_text
from grpo_pl.prompts.sources import PromptSource, Question
from grpo_pl.prompts.walk import order
from grpo_pl.system.refusal import ArgumentError, ConfigError
from grpo_pl.types import Prompt

_BATCH = 500
ROWS_WORTH_A_PROGRESS_BAR = 5000


class PromptSet:
    """All prompts of a source, encoded once, in the source's order and with seed 0.

    Args:
        source: Where the questions come from.
        format: How a question becomes a prompt.
        tokenizer: The policy's tokenizer.
        max_prompt_tokens: The longest prompt in tokens, chat template included.
        long_prompts: What to do with a longer one: refuse to start, leave the row out, or keep its last
            tokens (which cuts off the beginning of the chat template too).
        key: The config key of the source, such as `data.train`, for messages.
    """

    rows: list[Prompt]
    """The prompts that are left."""
    num_long: int
    """Rows longer than `max_prompt_tokens`, kept or not."""

    def __init__(
        self,
        source: PromptSource,
        format: ChatFormat,
        tokenizer: Tokenizer,
        *,
        max_prompt_tokens: int,
        long_prompts: Literal["error", "drop", "truncate"],
        key: str,
    ) -> None:
        if max_prompt_tokens < 1:
            raise ArgumentError(f"max_prompt_tokens={max_prompt_tokens}: expected 1 or more")
        self.rows: list[Prompt] = []
        self.format, self.tokenizer, self.key = format, tokenizer, key
        self.num_long, self.max_prompt_tokens, self.long_prompts = 0, max_prompt_tokens, long_prompts
        by_template = cache(lambda system: format.layout(tokenizer, system).opened)
        total = len(source)
        batches = range(0, total, _BATCH)
        hidden = total <= ROWS_WORTH_A_PROGRESS_BAR
        for start in track(batches, description=f"Encoding {key}", transient=True, disable=hidden):
            questions = [source[row] for row in range(start, min(start + _BATCH, total))]
            encoded = format.encode_batch([q.messages or q.text for q in questions], tokenizer)
            for row, (question, ids) in enumerate(zip(questions, encoded, strict=True), start=start):
                if not ids:
                    raise ConfigError(
                        f"{key}: row {row} encodes to no token at all (text {question.text!r:.80}); "
                        f"set {key} or data.format"
                    )
                is_long = len(ids) > max_prompt_tokens
                self.num_long += is_long
                if is_long and long_prompts == "error":
                    raise ConfigError(
                        f"{key}: row {row} has {len(ids)} tokens, more than {max_prompt_tokens}; "
                        "raise data.max_prompt_tokens or set data.long_prompts to drop or truncate"
                    )
                if is_long and long_prompts == "drop":
                    continue
                opened = (
                    by_template(_system(question))
                    if format.use_chat_template
                    else opened_by_text(format.plain_text(question.text))
                )
                prompt = _prompt(question, ids[-max_prompt_tokens:], format, opened)
                self.rows.append(replace(prompt, row=len(self.rows)))
        if not self.rows:
            raise ConfigError(
                f"{key}: all {total} rows are longer than {max_prompt_tokens} tokens and were dropped; "
                "raise data.max_prompt_tokens"
            )

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Tells these prompts from others."""
        return fingerprint(self.rows)

    def __len__(self) -> int:
        """The number of prompts that are left."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Prompt:
        """Prompt `index`, shared by all visits: do not change it."""
        return self.rows[index]


def _system(question: Question) -> str | None:
    """The system message of a conversation: templates may open a thought or not as it says."""
    first = question.messages[0] if question.messages else {}
    return first["content"] if first.get("role") == "system" else None


def _prompt(question: Question, token_ids: list[int], format: ChatFormat, opened: str) -> Prompt:
    return Prompt(
        token_ids=token_ids,
        text=question.text,
        answer=question.answer,
        messages=question.messages or [{"role": "user", "content": question.text}],
        opened=opened,
        templated=format.use_chat_template,
        gold=question.gold,
        metadata=question.metadata,
    )


def iteration_prompts(
    prompt_set: PromptSet,
    *,
    iteration: int,
    prompts_per_iteration: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[Prompt]:
    """The prompts of one iteration on one rank, a pure function of its arguments.

    Visits are an infinite stream: one seeded permutation of the set after the other. Iteration `i` takes the
    positions from `i * P` to `(i + 1) * P`, for `P = prompts_per_iteration` over all ranks, and rank `r` the
    `r`-th of `world_size` equal parts. So any number of ranks visits the same prompts with the same seeds,
    and resuming needs only the iteration's number. A set smaller than `P` is visited repeatedly.
    """
    assert iteration >= 0
    rows = []
    for visit in range(iteration * prompts_per_iteration, (iteration + 1) * prompts_per_iteration):
        epoch, position = divmod(visit, len(prompt_set))
        rows.append(order(len(prompt_set), derive_seed(seed, "prompts", epoch))[position])
    return part_of_rank(prompt_set, rows, iteration=iteration, seed=seed, rank=rank, world_size=world_size)


def part_of_rank(
    prompt_set: PromptSet, rows: Sequence[int], *, iteration: int, seed: int, rank: int, world_size: int
) -> list[Prompt]:
    """The prompts of rank `rank` among those in the given rows, each with the seed of its visit."""
    prompts_per_iteration = len(rows)
    if prompts_per_iteration < 1 or prompts_per_iteration % world_size:
        raise ArgumentError(
            f"prompts_per_iteration={prompts_per_iteration}: expected a positive multiple of "
            f"{world_size}, the number of data-parallel ranks"
        )
    assert 0 <= rank < world_size
    share = prompts_per_iteration // world_size
    return [
        replace(prompt_set[rows[position]], seed=derive_seed(seed, "rollout", iteration, position))
        for position in range(rank * share, (rank + 1) * share)
    ]
