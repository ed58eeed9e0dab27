"""One optimizer step on a stored rollout, in a process of its own, which writes its gradient to a file.

python -m grpo_pl.commands.check_invariance.probe FILE [any option of `grpo_pl fit`]
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from grpo_pl.config.cli import configure
from grpo_pl.config.exits import mistakes_answered
from grpo_pl.models.full_weights import full_gradients
from grpo_pl.system.output import tame_logs


class GradientProbe(pl.Callback):
    """Writes the gradient of the first optimizer step, before clipping, to a safetensors file (rank 0)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Gather the gradient one parameter at a time; collective where it is sharded."""
        whole: dict[str, Tensor] = {}
        for name, gradient in full_gradients(pl_module):
            if trainer.is_global_zero:
                whole[name] = gradient.detach().float().cpu().clone()
        if trainer.is_global_zero:
            save_file(whole, self.path)


def main() -> None:
    """Take the step."""
    tame_logs()
    with mistakes_answered():
        file, *args = sys.argv[1:]
        cli = configure(args)
        cli.trainer.callbacks.append(GradientProbe(Path(file)))  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, cli.datamodule)


if __name__ == "__main__":
    main()
