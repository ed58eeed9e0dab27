"""The prompts of a data module: read, checked, and dealt out to iterations and ranks."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

from grpo_pl.models.loading import load_tokenizer
from grpo_pl.prompts.chat import ChatFormat, Tokenizer
from grpo_pl.prompts.prompt_set import PromptSet, iteration_prompts
from grpo_pl.prompts.sources import PromptSource
from grpo_pl.runs.safe_loading import state_of
from grpo_pl.system.refusal import about
from grpo_pl.training.checks.prompts import check_prompts, check_unchanged
from grpo_pl.training.ranks import AttachedDataModule
from grpo_pl.types import Prompt


class PromptDataModule(AttachedDataModule):
    """A data module that knows its prompts; the constructor of a subclass sets what it reads them by."""

    train: PromptSource
    val: PromptSource | None
    pretrained: str
    format: ChatFormat
    max_prompt_tokens: int
    long_prompts: Literal["error", "drop", "truncate"]
    changed_prompts: Literal["error", "warn"]
    prompts_per_iteration: int
    seed: int

    def read_all_prompts(self, stage: str, check: Callable[[str, Sequence[Prompt]], None]) -> None:
        """Read the prompts of a stage and check them, each set with `check` too; sets `prompts` by name."""
        self.prompts: dict[str, PromptSet] = {}
        for name, source in {"train": self.train if stage == "fit" else None, "val": self.val}.items():
            if source is not None:
                prompts = self.prompts[name] = self.read_prompts(name, source)
                check_prompts(prompts, self.pretrained, self._ranks.size)
                check(prompts.key, prompts.rows)
        if stage == "fit" and self.changed_prompts == "error":  # when Lightning loads it, the engine runs
            state = state_of(type(self).__qualname__, self._trainer.ckpt_path)
            check_unchanged(state, self.prompts, self.changed_prompts)

    def read_prompts(self, name: str, source: PromptSource) -> PromptSet:
        """The encoded prompts of `data.<name>`."""
        with about(self):
            return PromptSet(
                source,
                self.format,
                self._tokenizer,
                max_prompt_tokens=self.max_prompt_tokens,
                long_prompts=self.long_prompts,
                key=f"data.{name}",
            )

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.pretrained)

    def prompts_of(self, iteration: int) -> list[Prompt]:
        """Prompts on this rank of an iteration."""
        ranks = self._ranks
        with about(self):
            return iteration_prompts(
                self.prompts["train"],
                iteration=iteration,
                prompts_per_iteration=self.prompts_per_iteration,
                seed=self.seed,
                rank=ranks.rank,
                world_size=ranks.size,
            )
