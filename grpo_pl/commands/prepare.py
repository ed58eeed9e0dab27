"""`grpo_pl prepare`: makes what studies begin with, such as pretrained models, by commands and only once."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_pl.commands.options import Options
from grpo_pl.commands.table import COMMANDS
from grpo_pl.config.by_name import config_file
from grpo_pl.config.files import read_config, shortened
from grpo_pl.system.refusal import ConfigError, nearest

DESCRIPTION = """Run the commands of a recipe, in their order, whose products do not exist yet. A recipe is a
YAML file of lines `PRODUCT: COMMAND`, such as `runs/a/model: export runs/a/checkpoints/last.ckpt
runs/a/model`."""
EXAMPLE = "for instance `{runs/a/model: export runs/a/checkpoints/last.ckpt runs/a/model}`"


class Step(NamedTuple):
    """A command and what it makes."""

    product: Path
    """A file or folder that exists once the command has ended."""
    words: list[str]
    """The words after `grpo_pl`."""


def prepare(args: list[str]) -> int:
    """Follow a recipe; returns the exit code of the first command that failed, or 0."""
    parser = Options("prepare", DESCRIPTION)
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or a name such as lab/organism")
    path = config_file(parser.parse_args(args).recipe, "prepare: there is no recipe")
    return follow(read_recipe(read_config(path), f"recipe {path}"))


def read_recipe(content: Any, where: str) -> list[Step]:
    """The steps of a recipe.

    Args:
        content: A mapping of products to commands.
        where: Names the recipe in refusals.
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{where}: expected products and their commands, {EXAMPLE}")
    steps = []
    for product, command in content.items():
        try:
            words = shlex.split(command) if isinstance(command, str) else []
        except ValueError as error:
            raise ConfigError(f"{where}: {product}: {error} in {shortened(command)}") from error
        if not words or words[0] not in COMMANDS:
            near = nearest(words[0], COMMANDS) if words else ""
            raise ConfigError(
                f"{where}: {product}: expected a command of grpo_pl with its options, {EXAMPLE}, "
                f"got {shortened(command)}{near}"
            )
        steps.append(Step(Path(product), words))
    return steps


def follow(steps: Sequence[Step]) -> int:
    """Run the commands whose products do not exist; returns the exit code of the first that failed, or 0.

    A command that is stopped by Ctrl-C or SIGTERM saves, and the same call goes on with it.
    """
    to_do = missing_steps(steps)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number, step in enumerate(to_do, start=1):
            print(
                f"preparing {step.product} ({number} of {len(to_do)}): {shlex.join(step.words)}", flush=True
            )
            if code := run(step.words):
                print(f"{step.product} could not be made: exit code {code}", file=sys.stderr)
                return code
            if not step.product.exists():
                raise ConfigError(f"{step.product}: the command `{shlex.join(step.words)}` did not make it")
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def missing_steps(steps: Sequence[Step]) -> list[Step]:
    """The steps whose products do not exist."""
    return [step for step in steps if not step.product.exists()]


def run(words: Sequence[str]) -> int:
    """Run a command in a process of its own; returns its exit code, or that of a stopped run."""
    process = subprocess.Popen([sys.executable, "-m", "grpo_pl", *words])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)  # it saves at the end of its iteration
        process.wait()
        from grpo_pl.runs.preemption import EXIT_CODE  # with it torch

        return EXIT_CODE
