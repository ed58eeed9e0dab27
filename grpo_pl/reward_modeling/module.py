"""RewardModeling: trains a reward model and writes a checkpoint of it."""

import logging
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.reward_model import RewardModel
from grpo_pl.reward_modeling.calibration import Calibration
from grpo_pl.reward_modeling.objectives import LabeledBatch, RewardObjective
from grpo_pl.system.precision import DType
from grpo_pl.training.checks.components import check_optimizer
from grpo_pl.training.optimization import OptimizedModule, OptimizerFactory, SchedulerFactory
from grpo_pl.training.strategies import place

log = logging.getLogger(__name__)
EXPORT_FOLDER = "model"


class RewardModeling(OptimizedModule):
    """A reward model, learned from labelled responses.

    When training ends, the folder `model` of the run is a checkpoint for `OutcomeRewardModel` or
    `ProcessRewardModel`, for the critic `ValueHead`, and for transformers.

    Args:
        objective: The training objective: `BradleyTerry` on pairs, or `StepLabels`.
        pretrained: Model folder or hub name to start from: a language model, whose score head starts at zero,
            or a reward model of this kind; where empty, the one of `--pretrained`.
        dtype: Type of the weights.
        attention: transformers' attention implementation ("eager", "sdpa", "flash_attention_2", ...); where
            null, its choice.
        gradient_checkpointing: Recompute activations in the backward: less memory, about a third more time.
        optimizer: Optimizer of all parameters.
        lr_scheduler: Stepped after each optimizer step; null for a constant learning rate.
    """

    def __init__(
        self,
        objective: RewardObjective,
        pretrained: str = "",
        dtype: DType = "float32",
        attention: str | None = None,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerFactory = lambda p: torch.optim.AdamW(p, lr=1e-5),
        lr_scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        check_optimizer(optimizer, lr_scheduler)
        self.objective, self.pretrained, self.dtype_name = objective, pretrained, dtype
        self.attention, self.gradient_checkpointing = attention, gradient_checkpointing
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.calibration = Calibration()
        self.reward_model: RewardModel | None = None

    @override
    def configure_model(self) -> None:
        if self.reward_model is None:
            self.reward_model = cast(RewardModel, place(self.trainer.strategy, self._build))

    def _build(self) -> RewardModel:
        built = RewardModel.load(self.pretrained, self.objective.kind, self.dtype_name, self.attention)
        if built.new_head:
            log.info("pretrained=%s: a new score head, zero at the start", self.pretrained)
            for parameter in built.head.parameters():
                nn.init.zeros_(parameter)
        if self.gradient_checkpointing:
            built.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return built.train()

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"reward_model": list(self.parameters())}

    @override
    def held_models(self) -> dict[str, nn.Module]:
        assert self.reward_model is not None, "configure_model comes first"
        return {"reward_model": self.reward_model}

    @override
    def forward(self, batch: LabeledBatch) -> Tensor:
        """The score after each token, `[B, T]`."""
        assert self.reward_model is not None, "configure_model comes first"
        scores: Tensor = self.reward_model(batch.token_ids, batch.lengths)
        return scores

    @override
    def training_step(self, batch: LabeledBatch, batch_idx: int) -> Tensor:
        scores = self(batch)
        verdict = self.objective(scores, batch)
        correct = (verdict.probability > 0.5) == (verdict.truth > 0.5)
        self._log("train/loss", verdict.loss.detach())
        self._log("train/accuracy", correct.float())
        return self.guarded(verdict.loss.mean(), made_of={"scores": scores})

    def _log(self, name: str, values: Tensor) -> None:
        self.log(name, values.mean(), on_step=False, on_epoch=True, batch_size=len(values), sync_dist=True)

    @override
    def on_validation_epoch_start(self) -> None:
        self.calibration.reset()

    @override
    def validation_step(self, batch: LabeledBatch, batch_idx: int) -> None:
        verdict = self.objective(self(batch), batch)
        self.calibration.update(verdict.loss, verdict.probability, verdict.truth)

    @override
    def on_validation_epoch_end(self) -> None:
        measured = self.calibration.compute()
        self.log_dict({f"val/{name}": value.float() for name, value in measured.items()}, batch_size=1)

    @override
    def on_train_epoch_end(self) -> None:
        """Write the model; on all ranks, because sharded weights are gathered."""
        assert self.reward_model is not None, "configure_model comes first"
        whole = full_weights(self.reward_model)
        weights = {name.removeprefix("model."): tensor.cpu() for name, tensor in whole}
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir) / EXPORT_FOLDER
            self.reward_model.save(folder, weights)
            log.info("the reward model is in %s", folder)
