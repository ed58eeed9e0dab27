"""RewardDataModule: labelled responses in, micro-batches of examples out."""

import hashlib
import logging
from array import array
from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

from rich.progress import track
from torch.utils.data import ConcatDataset, DataLoader, Dataset, DistributedSampler, Subset
from typing_extensions import override

from grpo_pl.functional import derive_seed, even_parts, permutation, rounds
from grpo_pl.models.reward_model import ResponseEncoder
from grpo_pl.prompts.prompt_set import ROWS_WORTH_A_PROGRESS_BAR
from grpo_pl.prompts.sources import PromptSource
from grpo_pl.reward_modeling.objectives import LabeledBatch, LabeledResponse, RewardObjective
from grpo_pl.runs.safe_loading import state_of
from grpo_pl.system.refusal import ArgumentError, ConfigError, check_at_least
from grpo_pl.training.checks.schedule import check_trainer_numbers
from grpo_pl.training.ranks import AttachedDataModule
from grpo_pl.training.stream import Stream

log = logging.getLogger(__name__)
LabeledExample = list[LabeledResponse]


class HasRewardObjective(Protocol):
    """The LightningModule as the DataModule sees it."""

    objective: RewardObjective


class RewardDataModule(AttachedDataModule):
    """Labelled responses for `RewardModeling`; an epoch is one pass over them.

    Sources read any layout: `question` names the column of the prompt, `answer` is null, and the objective
    names the other columns. `grpo_pl reward-data` writes such files.

    Args:
        train: The training data.
        val: Held-out data; null for no validation.
        replay: Old data, mixed into each epoch, so that a reward model that follows a policy does not forget
            (DeepSeekMath, Shao et al. 2024, arXiv:2402.03300, section 4.1.4).
        replay_share: The share of old data in an epoch; 0.1 in DeepSeekMath.
        pretrained: Model folder or hub name of the tokenizer; where empty, the one of `--pretrained`.
        batch_size: Examples (pairs, or responses with labelled steps) in a micro-batch.
        max_tokens: The longest response with its prompt, in tokens; null for the model's context.
        long_examples: What to do with longer ones: refuse the data, or drop them (counted).
        changed_examples: Whether to refuse a run that resumes with other examples, or warn.
        seed: Seed of the order of examples and of the choice of old ones.
    """

    def __init__(
        self,
        train: PromptSource,
        val: PromptSource | None = None,
        replay: PromptSource | None = None,
        replay_share: float = 0.1,
        pretrained: str = "",
        batch_size: int = 8,
        max_tokens: int | None = None,
        long_examples: Literal["error", "drop"] = "error",
        changed_examples: Literal["error", "warn"] = "error",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        if not 0 <= replay_share < 1:
            raise ArgumentError(f"replay_share={replay_share}: expected 0 or more and less than 1")
        self.train, self.val, self.replay, self.replay_share = train, val, replay, replay_share
        self.pretrained, self.batch_size, self.seed = pretrained, batch_size, seed
        self.max_tokens, self.long_examples = max_tokens, long_examples
        self.changed_examples = changed_examples
        self.sets: dict[str, Dataset[LabeledExample]] = {}
        self._digests: dict[str, str] = {}

    @override
    def setup(self, stage: str) -> None:
        """Read and encode everything."""
        if self.sets:
            return
        if stage == "fit":
            check_trainer_numbers(self._trainer)
        encode = ResponseEncoder.load(self.pretrained)
        if stage == "fit":
            new = self._read("train", self.train, encode)
            self.sets["train"] = cast("Dataset[LabeledExample]", new)
            if self.replay is not None and self.replay_share:
                old = self._read("replay", self.replay, encode)
                count = replay_count(len(new), len(old), self.replay_share)
                rows = permutation(len(old), derive_seed(self.seed, "replay"))[:count]
                self.sets["train"] = ConcatDataset([self.sets["train"], Subset(old, rows)])  # type: ignore[arg-type]
                log.info("data.replay: %d of %d examples beside %d new ones", count, len(old), len(new))
        if self.val is not None:
            held_out = self._read("val", self.val, encode)
            if len(held_out) < self._ranks.size:
                raise ConfigError(
                    f"data.val: {len(held_out)} examples are fewer than the {self._ranks.size} ranks: give "
                    "it more, or set it to null"
                )
            self.sets["val"] = cast("Dataset[LabeledExample]", held_out)
        if stage == "fit" and self.changed_examples == "error":  # before the model is built
            self._compare(state_of(type(self).__qualname__, self._trainer.ckpt_path))

    def _read(self, name: str, source: PromptSource, encode: ResponseEncoder) -> list[LabeledExample]:
        objective = cast(HasRewardObjective, self._trainer.lightning_module).objective
        limit = min(self.max_tokens or encode.context, encode.context)
        examples, hidden = [], len(source) < ROWS_WORTH_A_PROGRESS_BAR
        for row in track(
            range(len(source)), description=f"Encoding data.{name}", transient=True, disable=hidden
        ):
            try:
                example = objective.read(source[row], encode)
            except ConfigError as error:
                raise ConfigError(f"data.{name}: row {row}: {error}") from error
            length = max(len(response.token_ids) for response in example)
            if length <= limit:
                examples.append(example)
            elif self.long_examples == "error":
                raise ConfigError(
                    f"data.{name}: row {row} has {length} tokens, more than {limit}: raise data.max_tokens "
                    f"(the model reads {encode.context}) or set data.long_examples to drop"
                )
        self._digests[name] = digest(examples)
        dropped = len(source) - len(examples)
        if not examples:
            raise ConfigError(f"data.{name}: all {dropped} rows are longer than {limit} tokens")
        log.info(
            "data.%s: %d examples, %d longer than %d tokens dropped", name, len(examples), dropped, limit
        )
        return examples

    @override
    def state_dict(self) -> dict[str, Any]:
        """What tells these examples from others."""
        return {"examples": self._digests}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "train" in self.sets:  # `validate` may read what it wants
            self._compare(state_dict)

    def _compare(self, state: dict[str, Any]) -> None:
        for name, before in state.get("examples", {}).items():
            if before != self._digests.get(name, before):
                wrong = f"data.{name}: its examples are not those that the checkpoint was trained on"
                if self.changed_examples == "error":
                    raise ConfigError(
                        f"{wrong}: give back the data, or set data.changed_examples to warn and go on"
                    )
                log.warning("! %s", wrong)

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train")

    @override
    def val_dataloader(self) -> DataLoader[Any] | list[LabeledExample]:
        return self._loader("val") if "val" in self.sets else []

    def _loader(self, name: str) -> DataLoader[Any]:
        """Batches of this rank; their order depends on seed and epoch alone, so that a run can be resumed.

        In training, ranks have equally many examples, some of them twice. In validation each example is on
        one rank, in equally many batches, since ranks may compute each layer together.
        """
        rank, ranks = self._ranks.rank, self._ranks.size
        if name == "val" and ranks > 1:
            examples: Sequence[LabeledExample] = self.sets["val"]  # type: ignore[assignment]
            rows = range(rank, len(examples), ranks)
            parts = even_parts(len(rows), rounds(len(examples), ranks, at_once=self.batch_size))
            batches = [[examples[row] for row in rows[part.start : part.stop]] for part in parts]
            return DataLoader(Stream(lambda: map(LabeledBatch.collate, batches), len(parts)), batch_size=None)
        sampler: DistributedSampler[LabeledExample] = DistributedSampler(
            self.sets[name],
            num_replicas=ranks,
            rank=rank,
            shuffle=name == "train",
            seed=self.seed,
        )
        return DataLoader(
            self.sets[name], batch_size=self.batch_size, sampler=sampler, collate_fn=LabeledBatch.collate
        )


def digest(examples: Sequence[LabeledExample]) -> str:
    """Tells examples, as the model reads them and in their order, from others."""
    hashed = hashlib.blake2b(digest_size=16)
    for example in examples:
        for response in example:
            hashed.update(array("q", [len(response.token_ids), *response.token_ids]).tobytes())
            hashed.update(repr((response.judged, response.labels)).encode())
    return hashed.hexdigest()


def replay_count(new: int, old: int, share: float) -> int:
    """The number of `old` examples that are this share of an epoch with `new` ones; all if they are fewer.

    Example: 90 new ones and a share of 0.1 take 10.
    """
    return min(old, round(new * share / (1 - share)))
