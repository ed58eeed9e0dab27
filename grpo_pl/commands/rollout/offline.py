"""Samples, scores and keeps rollouts for later training."""

from functools import partial
from pathlib import Path

import pyarrow.compute as pc
from rich.progress import Progress

from grpo_pl.commands.engine import ONE_PROCESS, of_policy, started
from grpo_pl.config.cli import CLI, configure
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.rollout.parquet import file_name, files_of, group_of, read_columns, save_rollout
from grpo_pl.runs.folder import RunFolder, write_config
from grpo_pl.runs.layout import CONFIG_FILE, sweep
from grpo_pl.runs.lock import Lock
from grpo_pl.system.folders import check_folder
from grpo_pl.system.refusal import ConfigError
from grpo_pl.training.metrics import sample_records
from grpo_pl.training.strategies import place

DECIDES = "data", "pretrained", "model.rewards", "model.advantage"
"""The settings that a file of rollouts depends on begin so."""


def make(out: Path, options: list[str]) -> None:
    """Make the missing files in the folder `out`, and print what it holds.

    Raises:
        ConfigError: If `fit` would refuse the config, or if the folder has rollouts of another one.
    """
    check_folder("rollout: --out", out)
    cli = configure([*options, *ONE_PROCESS])
    lock = Lock(out, "--out")
    lock.take()
    try:
        check_same_settings(cli.run_folder, out)
        make_files(cli, out)
    except KeyboardInterrupt:
        raise SystemExit(f"{out}: the same command goes on") from None
    finally:
        lock.leave()
    print(f"{out}: {content(out)}")


def check_same_settings(run: RunFolder, out: Path) -> None:
    """Refuse a folder whose files were made with other settings, and name the keys that differ."""
    run.folder = out
    if (out / CONFIG_FILE).exists() and (keys := [k for k in run.changed() if k.startswith(DECIDES)]):
        raise ConfigError(
            f"--out={out} has rollouts with other settings of {', '.join(keys)}: name another folder"
        )


def make_files(cli: CLI, out: Path) -> None:
    """Sample, score and write every iteration without a file."""
    trainer, module, data = of_policy(cli)
    if (trainer.max_epochs or -1) < 1:
        raise ConfigError("trainer.max_epochs: rollout needs a number of iterations: set it to 1 or more")
    if data.curriculum is not None:
        raise ConfigError(
            "data.curriculum follows the pass rates of a policy that learns, and rollout trains nothing: set "
            "it to null"
        )
    missing = [i for i in range(data.end) if not (out / file_name(i + 1)).exists()]
    if not missing:
        return
    with started(trainer, data), Progress(transient=True) as bar:
        for reward in module.rewards.values():
            reward.build(partial(place, trainer.strategy))
        sweep(out)
        write_config(cli.run_folder.parser, cli.run_folder.config, out)
        task = bar.add_task("rollouts", total=data.end, completed=data.end - len(missing))
        for i in range(data.end):
            if i not in missing:
                pass_by(data, out / file_name(i + 1), i)
                continue
            sampled = data.sampler.sample(i)
            records = sample_records(sampled, module.score(sampled))
            save_rollout(sampled, out / file_name(i + 1), i + 1, records)
            bar.advance(task)


def pass_by(data: RolloutDataModule, file: Path, iteration: int) -> None:
    """Go on in the stream of dynamic sampling's other prompts, as if the file had just been sampled."""
    table = read_columns(file, ["temperature", "prompt_seed"])
    sampled = table.filter(pc.equal(table["temperature"], data.sampling.temperature))
    groups = pc.count_distinct(sampled["prompt_seed"]).as_py()
    data.visits.instead(iteration, 1, [groups - data.prompts_per_iteration])


def content(folder: Path) -> str:
    """A summary of a folder's files."""
    columns = ["temperature", "prompt_seed", "episode", "token_ids", "reward"]
    tables = [read_columns(file, columns) for file in files_of(folder)]
    prompts = sum(pc.count_distinct(table["prompt_seed"]).as_py() for table in tables)
    tokens = sum(pc.sum(pc.list_value_length(table["token_ids"])).as_py() for table in tables)
    rows = [row for table in tables for row in enumerate(table.drop_columns("token_ids").to_pylist())]
    once = {(*group_of(row), row.get("episode", n)): row["reward"] for n, row in rows}
    rewards = [reward for reward in once.values() if reward is not None]
    mean = f", mean reward {sum(rewards) / len(rewards):.3f}" if rewards else ""
    kind = "episodes" if any("episode" in table.column_names for table in tables) else "responses"
    return f"{len(tables)} iterations, {prompts:,} prompts, {len(once):,} {kind}, {tokens:,} tokens{mean}"
