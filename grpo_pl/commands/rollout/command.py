"""`grpo_pl rollout`."""

from pathlib import Path

from grpo_pl.commands.options import Options

DESCRIPTION = """Sample, score and keep the rollouts of trainer.max_epochs iterations, all by the pretrained
weights, for data.engine ReplayEngine; train nothing. Takes every option of `fit`. Started again, it goes on
where it was."""


def rollout(args: list[str]) -> None:
    """Make the missing files, and print what the folder holds."""
    parser = Options("rollout", DESCRIPTION)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files, one an iteration")
    own, for_fit = parser.split(args, policy_alone=True)
    from grpo_pl.commands.rollout.offline import make

    make(own.out, for_fit)
