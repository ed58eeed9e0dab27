"""The commands by name, imported only when they run. A new command is its folder and one entry here."""

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from grpo_pl import __version__
from grpo_pl.system.refusal import fail, nearest


class Command(NamedTuple):
    """A command's function and its line in the list of commands."""

    path: str
    """`module:function` in this package; takes the words after the command, may return an exit code."""
    does: str
    """One line of `--help`."""


COMMANDS = {
    "fit": Command(
        "fit.command:fit", "Train, and keep metrics, samples and checkpoints in the run's folder."
    ),
    "validate": Command(
        "fit.command:validate", "Measure the accuracy of a model or a checkpoint on the validation problems."
    ),
    "plan": Command(
        "plan.command:plan",
        "Say what a run will need of memory and passes, and what is likely not meant; run nothing.",
    ),
    "submit": Command("submit.command:submit", "Check what fit would run, and submit it to SLURM as a job."),
    "check-invariance": Command(
        "check_invariance.command:check_invariance",
        "Compare the gradient of one rollout over strategies, ranks and micro-batches.",
    ),
    "doctor": Command(
        "doctor.command:doctor",
        "Say what is wrong with machine, installation, model and engine, and how to fix it.",
    ),
    "rollout": Command(
        "rollout.command:rollout",
        "Sample the rollouts that fit would learn from first, score and keep them; train nothing.",
    ),
    "ablate": Command(
        "ablate.command:ablate",
        "Run a study: variants of a config, each with several seeds, and compare them.",
    ),
    "compare": Command("compare.command:compare", "Compare runs in a table, report.html and report.md."),
    "export": Command(
        "export:run", "Make a Hugging Face folder, for transformers and vLLM, from a run's checkpoint."
    ),
    "filter-prompts": Command(
        "filter_prompts:filter_prompts",
        "Write the training prompts whose pass rate in kept rollouts is neither too high nor too low.",
    ),
    "reward-data": Command(
        "reward_data.command:reward_data", "Make data for a reward model from rollouts and a verifier."
    ),
    "tiny-model": Command(
        "tiny_model:tiny_model", "Make a random Llama of 0.1 M parameters, for debugging and tests."
    ),
    "prepare": Command(
        "prepare:prepare", "Make what a study begins with, such as a pretrained model, by commands and once."
    ),
    "bench": Command(
        "bench.command:bench", "Measure what an iteration costs, beside what it must cost and beside TRL."
    ),
}


def command(name: str) -> Callable[[list[str]], int | None]:
    """The function of a command, imported only now."""
    module, _, function = COMMANDS[name].path.partition(":")
    return getattr(import_module(f"grpo_pl.commands.{module}"), function)  # type: ignore[no-any-return]


def answer(words: list[str]) -> bool:
    """Print the version or the list of commands if the command line asks for it; whether it did.

    A command line that begins with no command ends in one sentence and exit code 2.
    """
    if words[:1] == ["--version"]:
        print(f"grpo_pl {__version__}")
        return True
    if words and words[0] in ("-h", "--help"):
        print(listing().format_help(), end="")
        return True
    check_name(words)
    return False


def check_name(words: list[str]) -> None:
    """Refuse a command line that does not begin with a command."""
    known = ", ".join(COMMANDS)
    if not words:
        fail(f"no command is given; expected one of {known}")
    if not words[0].startswith("-"):
        if words[0] not in COMMANDS:
            fail(f"there is no command {words[0]!r}; expected one of {known}{nearest(words[0], COMMANDS)}")
        return
    if late := next((word for word in words if word in COMMANDS), None):
        fail(f"{late} must be the first word, with --config and all other options after it")
    fail(f"no command is given; expected one of {known}")


def listing() -> argparse.ArgumentParser:
    """A parser for the list of commands, one line each."""
    parser = argparse.ArgumentParser("grpo_pl", description="Reinforcement learning on language models.")
    parser.add_argument("--version", action="version", help="print the version and exit")
    listed = parser.add_subparsers(title="commands", description="each has a --help of its own")
    for name, one in COMMANDS.items():
        listed.add_parser(name, help=one.does)
    return parser
