"""Kill runs at random moments, start them again by the same command, and compare what they end with.

python tools/kill_test.py --kills 50 --seed 0        # ten iterations of configs/tiny.yaml, on a tiny model
python tools/kill_test.py --kills 10 --config configs/tiny.yaml --config configs/ppo.yaml --pretrained FOLDER
python tools/kill_test.py --kills 10 --trainer.devices 2 --trainer.strategy ddp

One run is left alone. Each of the others gets SIGKILL, with its whole process group, at a moment that is
uniform between the writing of its `config.yaml` and its end (as long as the undisturbed one took), is started
again, and must end with the same weights and optimizer, metrics (times and memory apart), samples, verdicts
and kept rollouts, to the last bit. The seed fixes the moments, as shares of that time. Options that are not
listed by --help go to `fit`. Where all are the same, the last line is `N of N identical` and the exit code 0.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout need not be installed
sys.path.insert(0, str(ROOT / "tools"))

from grpo_pl.commands.ablate.forked import ForkedRun, ForkServer  # noqa: E402

TINY = ("--trainer.max_epochs", "10")
POLL_S = 0.002


def environment() -> dict[str, str]:
    """Variables with which Python finds grpo_pl."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


class Started:
    """A command in a process of its own, which leads a process group of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        with log.open("ab") as file:
            command = [sys.executable, "-m", "grpo_pl", *arguments]
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment(), process_group=0
            )

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def kill(self) -> None:
        """Send SIGKILL to the whole group, and wait until it is gone."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Fit:
    """`grpo_pl fit` in a process group of its own; forked, if there is a fork server."""

    def __init__(self, arguments: list[str], folder: Path, server: ForkServer | None) -> None:
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.log")
        arguments = ["fit", *arguments, "--trainer.default_root_dir", str(folder)]
        self.process: Started | ForkedRun
        if server is None:
            self.process = Started(arguments, self.log)
        else:
            self.process = ForkedRun(server, arguments, self.log, environment())

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.code

    def kill(self) -> None:
        """Send SIGKILL to its whole group, and wait until it is gone."""
        self.process.kill()

    def wait_for_the_beginning(self) -> None:
        """Return when it has written its `config.yaml`."""
        while not (self.folder / "config.yaml").exists():
            self.check()
            time.sleep(POLL_S)

    def wait(self) -> None:
        """Return when it has ended as it should."""
        while self.code is None:
            time.sleep(POLL_S)
        self.check()

    def check(self) -> None:
        """Exit with the end of its log if it has failed."""
        if self.code:
            sys.exit(f"{self.log.read_text()[-2000:]}\n{self.folder}: exit code {self.code}")


def killed_and_continued(
    arguments: list[str], folder: Path, after_s: float, server: ForkServer | None
) -> None:
    """Kill a run so long after its beginning, earlier if it would have ended, and run it again to its end."""
    while True:
        run = Fit(arguments, folder, server)
        run.wait_for_the_beginning()
        end = time.monotonic() + after_s
        while run.code is None and time.monotonic() < end:
            time.sleep(POLL_S)
        if run.code is None:
            break
        run.check()
        shutil.rmtree(folder)
        after_s *= 0.8
    run.kill()
    Fit(arguments, folder, server).wait()


def differences(ours: Path, theirs: Path) -> list[str]:
    """The results that differ between two runs."""
    from grpo_pl.runs.checkpoint_io import AtomicCheckpointIO
    from grpo_pl.runs.layout import METRICS_FILE, ROLLOUTS_FOLDER, SAMPLES_FILE, VERDICTS_FILE, read_metrics

    def learned(folder: Path) -> Any:
        checkpoint = AtomicCheckpointIO().load_checkpoint(
            folder / "checkpoints" / "last.ckpt", weights_only=True
        )
        return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")}

    def measured(folder: Path) -> list[dict[str, str]]:
        rows = read_metrics(folder / METRICS_FILE)
        return [
            {k: repr(v) for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows
        ]

    def written(file: str, folder: Path) -> bytes:
        return (folder / file).read_bytes() if (folder / file).exists() else b""

    def kept(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (folder / ROLLOUTS_FOLDER).glob("*.parquet")}

    differing = {
        "weights or optimizer": not same(learned(ours), learned(theirs)),
        METRICS_FILE: measured(ours) != measured(theirs),
        **{f: written(f, ours) != written(f, theirs) for f in (SAMPLES_FILE, VERDICTS_FILE)},
        ROLLOUTS_FOLDER: kept(ours) != kept(theirs),
    }
    return [name for name, differs in differing.items() if differs]


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, tensors to the last bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def kill_test(kills: int, seed: int, arguments: list[str], out: Path, server: ForkServer | None) -> int:
    """Kill `kills` runs; returns the number of those that ended like the undisturbed one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    whole, identical = out / "undisturbed", 0
    run = Fit(arguments, whole, server)
    run.wait_for_the_beginning()
    begin = time.monotonic()
    run.wait()
    duration = time.monotonic() - begin
    print(f"undisturbed: {duration:.1f} s", flush=True)
    shares = random.Random(seed)
    columns = TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task("", total=kills)
        for number in range(kills):
            folder, share = out / f"killed-{number:03d}", shares.random()
            killed_and_continued(arguments, folder, share * duration, server)
            if other := differences(whole, folder):
                bar.console.print(f"{folder}, killed after {share:.1%}: other {', '.join(other)}")
            else:
                identical += 1
                shutil.rmtree(folder)
            bar.advance(task)
    return identical


def main() -> None:
    """Read the command line and run the test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", action="append", help="of fit; configs/tiny.yaml with 10 iterations")
    parser.add_argument("--pretrained", default="", help="model folder or hub name; a tiny one is made")
    parser.add_argument("--out", type=Path, help="where the runs are; those that differ stay there")
    parser.add_argument(
        "--forked", action="store_true", help="fork runs from a process that has imported all"
    )
    options, more = parser.parse_known_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="kill_test-"))
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        sys.exit(f"--out {out} is not empty: name a new folder")
    if not options.pretrained and options.config is None:
        from grpo_pl.commands.tiny_model import make_tiny_model

        options.pretrained = str(make_tiny_model(out / "tiny_model"))
    config = options.config or [str(ROOT / "configs" / "tiny.yaml")]
    arguments = [word for path in config for word in ("--config", path)]
    arguments += list(TINY) if options.config is None else []
    arguments += ["--pretrained", options.pretrained] if options.pretrained else []
    with ForkServer() as server:
        forks = server if options.forked else None
        identical = kill_test(options.kills, options.seed, arguments + more, out, forks)
    if identical == options.kills and options.out is None:
        shutil.rmtree(out)
    print(f"{identical} of {options.kills} identical")
    sys.exit(identical != options.kills)


if __name__ == "__main__":
    main()
