"""`grpo_pl ablate`."""

import argparse
import shlex
from pathlib import Path

from grpo_pl.commands.ablate.forked import ForkServer
from grpo_pl.commands.ablate.study import read_study
from grpo_pl.commands.options import Options, check_at_least
from grpo_pl.commands.prepare import follow, missing_steps
from grpo_pl.config.by_name import config_file
from grpo_pl.system.folders import check_folder
from grpo_pl.system.refusal import ConfigError

DESCRIPTION = """Run a study: every variant with every seed, each in OUT/<variant>/seed-<n>, and compare.
Runs that have ended are skipped, those that were cut off go on, and where one fails the others are run.
What is not listed here goes to `fit`, for all runs."""


def number_or_auto(text: str) -> int | None:
    """The type of `--jobs`; None for auto."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or auto, got {text}") from None


def ablate(args: list[str]) -> int:
    """Run a study and report on it; returns the exit code. A wrong study is refused before any run begins."""
    parser = Options("ablate", DESCRIPTION)
    say = parser.add_argument
    say("study", type=Path, metavar="STUDY", help="a file, or a name such as studies/quick")
    say("--out", type=Path, help="folder of the study; default: runs/<name of the file>")
    text = "runs at once, which share GPUs or cores; auto, the default: as many as these and the memory allow"
    say("--jobs", type=number_or_auto, metavar="N", help=text)
    say("--seeds", help="these seeds in place of the study's: '[4, 5]', or how many")
    say("--variants", help="only these variants: '[grpo, critic]'; of factors also '[critic=none]'")
    say("--slurm", metavar="OPTIONS", help="as an array of SLURM jobs, with these options of `submit`")
    text = "check and list the runs, and say what they will be able to tell; run nothing"
    say("--dry-run", action="store_true", help=text)
    say(
        "--pilot",
        type=Path,
        help="of a dry run: a folder of runs with several seeds; default: that of the study",
    )
    options, for_fit = parser.split(args)
    if options.jobs is not None:
        check_at_least("ablate", options, jobs=1)
    study = read_study(Path(config_file(str(options.study), "ablate: there is no study")))
    part = study.part(options.seeds, options.variants)
    out: Path = options.out or Path("runs") / options.study.stem
    check_folder("ablate: --out", out)
    if options.pilot is not None and not options.dry_run:
        raise ConfigError(
            "ablate: --pilot: it is for --dry-run, which says what the study will find: add that"
        )
    if options.dry_run and (missing := missing_steps(study.prepare)):
        print("".join(f"to prepare: {step.product}: {shlex.join(step.words)}\n" for step in missing), end="")
        print(
            "The runs can be checked once these exist: `grpo_pl ablate` without --dry-run makes them first."
        )
        return 0
    if code := follow(study.prepare):
        return code
    with ForkServer() as server:
        if options.slurm is None and not options.dry_run:
            server.begin(study.imports(for_fit))  # at the same time as this process
        from grpo_pl.commands.ablate.conducting import conduct

        return conduct(study, part, out, options, for_fit, server)
