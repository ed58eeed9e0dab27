"""`grpo_pl submit`."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_pl.commands.options import Options, check_at_least
from grpo_pl.commands.submit.script import fill
from grpo_pl.runs import slurm_job
from grpo_pl.runs.layout import CONFIG_FILE
from grpo_pl.system.refusal import ConfigError

SCRIPT_FILE = "job.sbatch"
DESCRIPTION = """Check what `fit` would run, write it as a job into the run's folder, and submit it to SLURM.
Options that are not listed here go to `fit`; options left out are as in grpo_pl/commands/submit/*.sbatch."""


def sbatch_option(text: str) -> str:
    """The type of `--sbatch`: the long name of an option and its value, as they stand in a script."""
    if not re.fullmatch(r"[A-Za-z][\w-]*=.+", text):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE such as qos=high, got {text!r}")
    return text


def options() -> Options:
    """The options of `submit` itself."""
    parser = Options("submit", DESCRIPTION)
    add = parser.add_argument
    add("--nodes", type=int, required=True, help="nodes that train")
    add("--gpus-per-node", type=int, default=8, help="ranks of a node; 0: trainer.devices on CPUs")
    add("--server-nodes", type=int, default=0, help="more nodes, with a vLLM server each")
    add("--server-args", default="", help="more options of each server, in one string")
    add("--cpus-per-task", type=int, help="CPU cores of a rank")
    add("--time", help="time limit, as in sbatch")
    add("--warning-s", type=int, help="seconds before its end: enough for an iteration and a checkpoint")
    add("--partition")
    add(
        "--sbatch",
        type=sbatch_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of sbatch",
    )
    add("--dry-run", action="store_true", help="show the job and change nothing")
    return parser


def submit(args: list[str]) -> None:
    """Check, write and submit a job; `args` are the options of `submit` and of `fit`."""
    own, for_fit = options().split(args)
    for_fit += for_nodes(own)
    from grpo_pl.commands.checked import check

    fit = check(for_fit)
    folder = Path(fit.settings.trainer.default_root_dir)
    script = write(own, fit.settings, folder, [f"set -- --config {shlex.quote(str(folder / CONFIG_FILE))}"])
    if own.dry_run:
        print(script, end="")
        return
    check_sbatch()
    check_free(folder)
    fit.prepare()
    (folder / SCRIPT_FILE).write_text(script, encoding="utf-8")
    before = slurm_job.owner(folder)
    job = hand_in(folder / SCRIPT_FILE)
    if slurm_job.owner(folder) == before:  # or the job itself was faster
        slurm_job.Owner(job, starts=0).write(folder)
    print(f"Job {job} is submitted: {folder / SCRIPT_FILE}")


def for_nodes(options: argparse.Namespace) -> list[str]:
    """The options of `fit` for the requested nodes and GPUs."""
    check_at_least("submit", options, nodes=1, server_nodes=0, gpus_per_node=0)
    for_fit = ["--trainer.num_nodes", str(options.nodes)]
    if options.gpus_per_node:
        for_fit += ["--trainer.accelerator", "gpu", "--trainer.devices", str(options.gpus_per_node)]
    if options.server_nodes:
        for_fit += ["--data.engine.urls", '["http://localhost"]']  # the job fills in the real ones
    return for_fit


def check_sbatch() -> None:
    """Refuse a machine without sbatch."""
    if shutil.which("sbatch") is None:
        raise ConfigError("submit: this machine has no sbatch: log in where SLURM is, or say --dry-run")


def check_free(folder: Path) -> None:
    """Refuse a run's folder that belongs to another job which has not ended."""
    before = slurm_job.owner(folder)
    if before and (state := slurm_job.state(before.job)):
        raise ConfigError(
            f"trainer.default_root_dir={folder} is the folder of job {before.job}, which is {state}: name "
            f"another, or scancel {before.job}"
        )


def write(
    options: argparse.Namespace,
    settings: Any,
    folder: Path,
    choose: Sequence[str],
    more: Mapping[str, str] | None = None,
) -> str:
    """The job's script: the template for these nodes.

    Args:
        options: The options of `submit`.
        settings: The config of the run; of an array of runs, that of any.
        folder: The folder of the job's output.
        choose: Shell commands that set the options of `fit`.
        more: Further directives of the job that trains.
    """
    ranks = options.gpus_per_node or settings.trainer.devices
    if not str(ranks).isdigit():
        raise ConfigError(
            f"trainer.devices={ranks}: on nodes without GPUs set it to the processes of a node, a number"
        )
    gpus, cpus = options.gpus_per_node, options.cpus_per_task
    everywhere = {"gpus-per-node": str(gpus) if gpus else None} | directive("partition", options.partition)
    everywhere |= dict(pair.partition("=")[::2] for pair in options.sbatch)
    training = {
        "job-name": shlex.quote(folder.name),
        "nodes": str(options.nodes),
        "ntasks-per-node": str(ranks),
        "output": shlex.quote(f"{folder}/slurm-%j.out"),
        "chdir": shlex.quote(str(Path.cwd())),
        **directive("cpus-per-task", cpus),
        **directive("time", options.time),
        **directive("signal", options.warning_s and f"USR1@{options.warning_s}"),
        **everywhere,
        **(more or {}),
    }
    commands = [f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH", *choose]
    if not options.server_nodes:
        return fill("one_node" if options.nodes == 1 else "many_nodes", [training], commands)
    data = settings.data
    tokens = data.max_prompt_tokens + max(data.sampling.max_tokens, data.val_max_tokens or 0)
    serving = ["--pretrained", data.engine.init_args.pretrained, "--max_model_len", str(tokens)]
    server_args = f"{shlex.join(serving)} {options.server_args}".strip()
    commands.append(f"export SERVER_ARGS={shlex.quote(server_args)}")
    servers = everywhere | {"nodes": str(options.server_nodes)}
    servers |= directive("cpus-per-task", cpus and cpus * ranks)
    return fill("server_nodes", [training, servers], commands)


def directive(name: str, value: Any) -> dict[str, str | None]:
    """A directive, if it has a value."""
    return {name: str(value)} if value else {}


def hand_in(script: Path, *options: str) -> str:
    """Submit a script with more options of sbatch; returns the job's id. SLURM's refusal is passed on."""
    done = subprocess.run(
        ["sbatch", "--parsable", *options, script], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"submit: SLURM refuses {script}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]
