"""Checks the alarms of a run after each iteration."""

import logging

import lightning.pytorch as pl
from typing_extensions import override

from grpo_pl.callbacks.alarm_rules import (
    COLUMN,
    Alarm,
    AllTruncated,
    EntropyCollapse,
    KLExplosion,
    MismatchGrowth,
    NoSignal,
    RewardHacking,
)
from grpo_pl.callbacks.guard import RunStoppedError
from grpo_pl.callbacks.metrics_table import metrics_table

log = logging.getLogger(__name__)


class Alarms(pl.Callback):
    """Says once, loudly, when an alarm begins to hold, and writes `alarm/<name>` into `metrics.csv`.

    Args:
        entropy_collapse: The policy is certain of every token; null for no such alarm.
        kl_explosion: It has left the reference.
        no_signal: All rewards are equal.
        all_truncated: Responses do not end.
        mismatch_growth: Engine and trainer drift apart.
        reward_hacking: The training reward rises while the validation accuracy falls.
        own: More alarms, by class path.
    """

    def __init__(
        self,
        entropy_collapse: EntropyCollapse | None = EntropyCollapse(),
        kl_explosion: KLExplosion | None = KLExplosion(),
        no_signal: NoSignal | None = NoSignal(),
        all_truncated: AllTruncated | None = AllTruncated(),
        mismatch_growth: MismatchGrowth | None = MismatchGrowth(),
        reward_hacking: RewardHacking | None = RewardHacking(),
        own: list[Alarm] | None = None,
    ) -> None:
        ours = entropy_collapse, kl_explosion, no_signal, all_truncated, mismatch_growth, reward_hacking
        self.alarms: list[Alarm] = [alarm for alarm in (*ours, *(own or [])) if alarm is not None]

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the row that `MetricsTable` has just written."""
        table = metrics_table(trainer)
        if table is None:
            return
        before = table.rows[-2] if len(table.rows) > 1 else {}
        failures = {alarm: alarm.check(table.rows) for alarm in self.alarms}
        columns = {f"{COLUMN}{alarm.name}": float(text is not None) for alarm, text in failures.items()}
        table.add(trainer, columns)
        pl_module.log_dict(columns)
        new = {
            alarm: f"{alarm.name} in iteration {table.rows[-1]['iteration']:.0f}: {text}; {alarm.advice}"
            for alarm, text in failures.items()
            if text is not None and before.get(f"{COLUMN}{alarm.name}") != 1
        }
        for sentence in new.values() if trainer.is_global_zero else ():
            log.warning("ALARM %s", sentence)
        ends = [f"alarm {sentence}" for alarm, sentence in new.items() if alarm.stop]
        if any(alarm.stop for alarm in self.alarms) and trainer.strategy.reduce_boolean_decision(
            bool(ends), all=False
        ):
            raise RunStoppedError("; ".join(ends) or "an alarm on another rank")
