"""The prompts of a data module: read, checked, and dealt out to iterations and ranks."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_pl.models.loading import load_tokenizer
from grpo_pl.prompts.chat import ChatFormat, Tokenizer
from grpo_pl.prompts.curriculum import Curriculum
from grpo_pl.prompts.pass_rates import Right, write_pass_rates
from grpo_pl.prompts.prompt_set import PromptSet
from grpo_pl.prompts.sources import PromptSource
from grpo_pl.prompts.visits import Visits
from grpo_pl.runs.layout import PASS_RATES_FILE
from grpo_pl.runs.safe_loading import state_of
from grpo_pl.system.refusal import about
from grpo_pl.training.checks.prompts import check_prompts, check_unchanged
from grpo_pl.training.ranks import AttachedDataModule
from grpo_pl.types import Prompt

log = logging.getLogger(__name__)


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
    pass_rates: Right
    curriculum: Curriculum | None

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

    def order_prompts(self, lookahead: int) -> None:
        """Begin to visit the training prompts, for an engine that samples so many iterations ahead."""
        self.visits = Visits(
            self.prompts["train"],
            prompts_per_iteration=self.prompts_per_iteration,
            seed=self.seed,
            right=self.pass_rates,
            curriculum=self.curriculum,
            delay=lookahead,
        )

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
        with about(self):
            return self.visits.of(iteration, self._ranks.rank, self._ranks.size)

    def other_prompts(
        self, sum_over_ranks: Callable[[Tensor], Tensor], iteration: int, again: int, count: int
    ) -> list[Prompt]:
        """So many prompts on this rank for round `again` of an iteration's dynamic sampling; collective."""
        shares = torch.zeros(self._ranks.size, dtype=torch.int64)
        shares[self._ranks.rank] = count
        return self.visits.instead(iteration, again, sum_over_ranks(shares).tolist(), self._ranks.rank)

    def prompts_state(self) -> dict[str, Any]:
        """What tells the prompts from others, and the visits to them; writes the table of pass rates."""
        state: dict[str, Any] = {"prompts": {name: one.fingerprint for name, one in self.prompts.items()}}
        if "train" not in self.prompts:
            return state
        if self._trainer.is_global_zero:
            path = Path(self._trainer.default_root_dir) / PASS_RATES_FILE
            write_pass_rates(path, self.visits.rates, self.prompts["train"].rows)
        return state | {"visits": self.visits.state_dict()}

    def load_prompts_state(self, state: Mapping[str, Any]) -> None:
        """Check that the prompts are those of the state, and go on with its visits to them."""
        check_unchanged(state, self.prompts, self.changed_prompts)
        if "visits" not in state:  # a checkpoint of an old version
            return
        before, now = state["prompts"]["train"], self.prompts["train"].fingerprint
        if any(before[part] != now[part] for part in ("prompts", "questions")):
            log.warning("! the pass rates of data.train begin anew: its prompts are others")
            return
        self.visits.load_state_dict(state["visits"])
