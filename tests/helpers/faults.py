"""Real components that go wrong on purpose; a run names them by import path."""

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from helpers import worker_calls
from lightning.pytorch.plugins import MixedPrecision

from grpo_pl.callbacks.alarm_rules import Alarm
from grpo_pl.rewards.base import RewardFunction, Verifier
from grpo_pl.rewards.workers import WorkerReward
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.types import Rollout, Sample


class NaNEngine(InProcessEngine):  # type: ignore[misc]
    """Says NaN of the first sampled token where the weights are of some versions.

    Args:
        versions: Optimizer steps that those weights have behind them.
        rank: The rank on which it does; null for all.
    """

    def __init__(self, versions: list[int], rank: int | None = None, pretrained: str = "") -> None:
        super().__init__(pretrained)
        self.versions, self.rank = versions, rank

    def generate(self, *args: Any, **kwargs: Any) -> Rollout:
        rollout = super().generate(*args, **kwargs)
        if self.version in self.versions and self.rank in (None, int(os.environ.get("LOCAL_RANK", "0"))):
            row, column = rollout.loss_mask.nonzero()[0].tolist()
            rollout.sampling_logprobs[row, column] = torch.nan
        return rollout


class StalledEngine(InProcessEngine):  # type: ignore[misc]
    """Stalls where it is told to, after it has said so by a file.

    Args:
        stage: When: `start`, or `validate` (greedily).
        path: The file.
    """

    def __init__(self, stage: str, path: str, pretrained: str = "") -> None:
        super().__init__(pretrained)
        self.stage, self.path = stage, path

    def start(self, **arguments: Any) -> None:
        self._stall("start")
        super().start(**arguments)

    def generate(self, prompts: Any, group_size: int, sampling: SamplingConfig) -> Rollout:
        if sampling.temperature == 0:
            self._stall("validate")
        return super().generate(prompts, group_size, sampling)

    def _stall(self, stage: str) -> None:
        if stage == self.stage:
            Path(self.path).touch()
            time.sleep(3600)


class SignalIn(pl.Callback):
    """Sends this process a signal when a stage of an iteration begins, or a checkpoint is made; once."""

    def __init__(self, stage: str, number: int) -> None:
        self.stage, self.number = stage, number

    def on_fit_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        datamodule.on_stage = self._begins

    def on_save_checkpoint(self, *_: Any) -> None:
        self._begins("checkpoint")

    def _begins(self, stage: str) -> None:
        if stage == self.stage:
            self.stage = "done"
            os.kill(os.getpid(), self.number)


class KillEngine(pl.Callback):
    """Kills the process of an OverlappedEngine when an iteration begins."""

    def on_train_epoch_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            os.kill(trainer.datamodule.engine._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]


class KillRun(pl.Callback):
    """Kills the run's own process when the second iteration begins, as the system does when memory ends."""

    def on_train_epoch_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Poison(pl.Callback):
    """Writes NaN into a weight of a model, an attribute of the LightningModule, when an iteration begins."""

    def __init__(self, model: str = "policy", iteration: int = 2) -> None:
        self.model, self.iteration = model, iteration

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.iteration:
            weight = next(iter(getattr(pl_module, self.model).parameters()))
            weight.data.view(-1)[0] = torch.nan


class PoisonGradient(pl.Callback):
    """Writes infinity into the gradient of one parameter in one optimizer step."""

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: Any) -> None:
        if trainer.global_step == self.step:
            *_, last = (p for p in pl_module.parameters() if p.grad is not None)
            last.grad.view(-1)[0] = torch.inf


class Digest(pl.Callback):
    """Writes what the weights of each rank are at the end."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        policy = pl_module.policy_weights()  # type: ignore[operator]
        whole = b"".join(tensor.detach().numpy().tobytes() for _, tensor in policy)
        path = Path(trainer.default_root_dir) / f"digest-{trainer.global_rank}"
        path.write_text(hashlib.sha256(whole).hexdigest())


class OverflowingHalf(MixedPrecision):
    """float16 on a CPU whose loss scale begins far too high, as it always does by some factor."""

    def __init__(self, doublings: int = 25) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**doublings))


class Always(Alarm):
    """An alarm of a user's own."""

    advice = "look elsewhere"

    def __init__(self, since: int = 1, stop: bool = False) -> None:
        self.since, self.stop = since, stop

    def check(self, rows: Any) -> str | None:
        return "it is late" if rows[-1]["iteration"] >= self.since else None


class FailingVerifier(Verifier):  # type: ignore[misc]
    """Right is a response that is the gold answer; fails on one with a word.

    Args:
        where: What fails: `score` or `extract`.
        word: The word.
    """

    def __init__(self, where: str = "score", word: str = "broken", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where, self.word = where, word

    def score(self, samples: Any) -> list[float]:
        return [float(self._read("score", sample.response) == sample.prompt.answer) for sample in samples]

    def extract(self, response: str) -> str:
        return self._read("extract", response)

    def _read(self, where: str, response: str) -> str:
        if where == self.where and self.word in response:
            raise ZeroDivisionError("no such luck")
        return response


class FailingInWorkers(WorkerReward, Verifier):  # type: ignore[misc]
    """The same, computed in worker processes; a response "hang" takes too long."""

    def call(self, sample: Any) -> partial[Any]:
        if sample.response == "hang":
            return partial(worker_calls.hang)
        right = 0.5 * (sample.response == sample.prompt.answer)
        return partial(worker_calls.fail, "no luck") if "broken" in sample.response else partial(
            worker_calls.double, right
        )  # fmt: skip

    def extract(self, response: str) -> str:
        return response


class FallingSilent(RewardFunction):  # type: ignore[misc]
    """Tells responses apart in the first iterations, and none later.

    Args:
        until: The number of those iterations.
    """

    def __init__(self, until: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.until, self.asked = until, 0

    def score(self, samples: Any) -> list[float]:
        self.asked += 1
        return [float(len(sample.response) % 2) * (self.asked <= self.until) for sample in samples]


def enormous(response: str, **_: Any) -> float:
    """A reward that a float32 holds, and whose variance it does not."""
    return 3e38 if len(response) % 2 else -3e38


class Fading(RewardFunction):  # type: ignore[misc]
    """Pays for digits, and abstains on everything from some call on, as a verifier that is down.

    Args:
        calls: Calls that it answers.
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        self.calls -= 1
        return [None if self.calls < 0 else float("1" in s.response) for s in samples]


class Constant(RewardFunction):  # type: ignore[misc]
    """The same reward for every response: no group has a signal."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [0.0] * len(samples)
