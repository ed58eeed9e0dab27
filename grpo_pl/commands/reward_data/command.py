"""`grpo_pl reward-data`."""

import argparse
from pathlib import Path

from grpo_pl.commands.options import Options, check_at_least
from grpo_pl.system.folders import check_folder
from grpo_pl.system.refusal import ConfigError

DESCRIPTION = """Make data for a reward model from rollouts and a verifier: OUT/train.jsonl and OUT/val.jsonl,
which share no prompt; which prompts are held out depends on their text alone. `pairs`: a right and a wrong
response to the same prompt, for BradleyTerry. `steps`: steps labelled by how often the policy gets from them
to the right answer, for StepLabels. Takes every option of `fit`."""


def options() -> Options:
    """The options of `reward-data` itself."""
    parser = Options("reward-data", DESCRIPTION)
    add = parser.add_argument
    add("kind", choices=("pairs", "steps"))
    add("out", type=Path, help="the folder to write")
    add("--prompts", type=int, default=512, help="prompts to sample responses to (%(default)s)")
    add("--samples", type=Path, help="pairs from a run's samples.jsonl: nothing is sampled")
    add("--pairs-per-prompt", type=int, default=4, help="at most (%(default)s)")
    add("--steps", default=r"\n+", help="regular expression of what stands between two steps")
    add("--continuations", type=int, default=8, help="responses that judge a step (%(default)s)")
    add("--verifier", default="", help="one of model.verifiers; default: the first")
    add("--val-share", type=float, default=0.1, help="share of the prompts that is held out (%(default)s)")
    return parser


def reward_data(args: list[str]) -> None:
    """Sample, verify and write the rows."""
    own, for_fit = options().split(args, policy_alone=True)
    check(own)
    check_folder("reward-data: out", own.out)
    from grpo_pl.commands.reward_data.making import make, write

    counts = write(make(own, for_fit), own.out, own.val_share)
    print(f"{own.out}: {counts['train']} rows in train.jsonl, {counts['val']} in val.jsonl")


def check(options: argparse.Namespace) -> None:
    """Refuse numbers out of range, and recorded responses where steps are to be continued."""
    check_at_least("reward-data", options, prompts=1, pairs_per_prompt=1, continuations=1)
    if not 0 <= options.val_share < 1:
        raise ConfigError(f"reward-data: --val-share={options.val_share}: expected 0 or more and less than 1")
    if options.kind == "steps" and options.samples:
        raise ConfigError(
            "reward-data: --samples makes pairs: the steps of recorded responses cannot be continued"
        )
