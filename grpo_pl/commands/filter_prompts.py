"""`grpo_pl filter-prompts`: the training prompts that are neither too easy nor too hard, by kept rollouts."""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_pl.commands.options import Options, new_file
from grpo_pl.runs.layout import CONFIG_FILE, ROLLOUTS_FOLDER
from grpo_pl.system.refusal import ConfigError

if TYPE_CHECKING:
    from grpo_pl.prompts.pass_rates import Right
    from grpo_pl.types import Prompt

DESCRIPTION = """Write the prompts of data.train whose pass rate in kept rollouts lies in [LOW, HIGH], as a
JSON Lines file to train on. ROLLOUTS is the folder of a run with data.keep_rollouts or of `rollout`; its own
config.yaml says what data.train is, unless --config does. data.pass_rates says which responses are right.
Takes every option of `fit`."""
Rates = Mapping[tuple[int, ...], tuple[int, int]]
"""Responses to a prompt and right ones among them, by the prompt's tokens."""


def options() -> Options:
    """The options of `filter-prompts` itself."""
    parser = Options("filter-prompts", DESCRIPTION)
    add = parser.add_argument
    add("rollouts", type=Path, help="a folder of kept rollouts, or of a run that has one")
    add("out", type=new_file, help="the file to write, such as data.jsonl")
    add("--low", type=float, default=0.1, help="the lowest pass rate (%(default)s)")
    add("--high", type=float, default=0.9, help="the highest pass rate (%(default)s)")
    add(
        "--unseen",
        choices=("drop", "keep"),
        default="drop",
        help="what to do with prompts without a response in the rollouts (%(default)s)",
    )
    return parser


def filter_prompts(args: list[str]) -> None:
    """Write the prompts, and print how many are left and why the others are not."""
    own, for_fit = options().split(args, policy_alone=True)
    if not 0 <= own.low <= own.high <= 1:
        raise ConfigError(f"filter-prompts: --low={own.low}: expected 0 <= low <= high <= 1")
    files = rollout_files(own.rollouts)
    if not any(word.partition("=")[0] == "--config" for word in for_fit):
        for_fit = ["--config", str(config_of(own.rollouts)), *for_fit]

    from grpo_pl.commands.engine import ONE_PROCESS, of_policy
    from grpo_pl.config.cli import configure

    _, _, data = of_policy(configure([*for_fit, *ONE_PROCESS]))
    rates = read_rates(files, data.pass_rates)
    prompts = data.read_prompts("train", data.train).rows
    if not any(tuple(prompt.token_ids) in rates for prompt in prompts):
        raise ConfigError(
            f"filter-prompts: none of the prompts in {own.rollouts} is one of data.train: say the --config "
            "that they were sampled with"
        )
    chosen, counted = choose(prompts, rates, own)
    if not chosen:
        raise ConfigError(
            f"filter-prompts: no prompt has a pass rate in [{own.low}, {own.high}] ({said(counted)}): lower "
            "--low or raise --high"
        )
    columns = write(own.out, chosen)
    named = " ".join(f"--data.train.{name} {column}" for name, column in columns.items() if column != name)
    print(
        f"{own.out}: {len(chosen)} of {len(prompts)} prompts; left out: {said(counted)}\n"
        f"Train on them with --data.train JSONL --data.train.path {own.out}{' ' * bool(named)}{named}"
    )


def rollout_files(path: Path) -> list[Path]:
    """The files of kept rollouts at a path."""
    from grpo_pl.rollout.parquet import files_of

    inner = path / ROLLOUTS_FOLDER
    files = files_of(inner if inner.is_dir() else path)
    if not files or not files[0].is_file():
        raise ConfigError(
            f"filter-prompts: {path} has no kept rollouts: name the folder of a run with data.keep_rollouts "
            "true, or of `grpo_pl rollout`"
        )
    return files


def config_of(rollouts: Path) -> Path:
    """The config.yaml that kept rollouts were sampled with."""
    near = [folder / CONFIG_FILE for folder in (rollouts, *rollouts.resolve().parents[:2])]
    found = next((path for path in near if path.is_file()), None)
    if found is None:
        raise ConfigError(
            f"filter-prompts: there is no {CONFIG_FILE} at {rollouts}: say the --config that they were "
            "sampled with"
        )
    return found


def read_rates(files: Sequence[Path], right: "Right") -> Rates:
    """The pass rates in files of rollouts; greedy responses and those without a reward do not count."""
    import pyarrow.parquet as pq

    from grpo_pl.rollout.parquet import group_of, read_columns

    reward = "reward" if right.by is None else f"rewards/{right.by}"
    responses: Counter[tuple[int, ...]] = Counter()
    passed: Counter[tuple[int, ...]] = Counter()
    for file in files:
        columns = ("prompt_token_ids", "asked_token_ids", "prompt_seed", "episode", "temperature", reward)
        table = read_columns(file, columns)
        names = pq.read_schema(file).names
        if reward not in names:
            has = ", ".join(n.removeprefix("rewards/") for n in names if n.startswith("rewards/")) or "none"
            raise ConfigError(
                f"data.pass_rates.by={right.by}: {file} has no such reward, but {has}: name one of these"
            )
        rows = enumerate(table.to_pylist())  # a forked episode has several, which say the same
        for row in {(*group_of(row), row.get("episode", n)): row for n, row in rows}.values():
            if row["temperature"] > 0 and row[reward] is not None:
                asked = tuple(row.get("asked_token_ids", row["prompt_token_ids"]))
                responses[asked] += 1
                passed[asked] += row[reward] > right.threshold
    return {prompt: (count, passed[prompt]) for prompt, count in responses.items()}


def choose(
    prompts: Sequence["Prompt"], rates: Rates, own: argparse.Namespace
) -> tuple[list["Prompt"], Counter[str]]:
    """The prompts to keep, and how many others there are of each kind."""
    chosen, counted = [], Counter(easy=0, hard=0, unseen=0)
    for prompt in prompts:
        responses, passed = rates.get(tuple(prompt.token_ids), (0, 0))
        rate = passed / responses if responses else None
        kind = "unseen" if rate is None else "easy" if rate > own.high else "hard" if rate < own.low else ""
        if not kind or (kind == "unseen" and own.unseen == "keep"):
            chosen.append(prompt)
        else:
            counted[kind] += 1
    return chosen, counted


def said(counted: Counter[str]) -> str:
    """The prompts that are left out, in words."""
    return f"{counted['easy']} too easy, {counted['hard']} too hard, {counted['unseen']} never answered"


def write(path: Path, prompts: Sequence["Prompt"]) -> dict[str, str]:
    """Write a JSON Lines file of prompts; returns its columns of question and gold answer."""
    from grpo_pl.system.atomic_files import write_atomically

    answer = next((column for prompt in prompts for column in prompt.gold), "answer")
    if not any(prompt.answer for prompt in prompts):
        answer = "null"
    taken, question = {answer, *(column for prompt in prompts for column in prompt.metadata)}, "question"
    while question in taken:
        question += "_"
    lines = [line(prompt, question, answer) for prompt in prompts]
    write_atomically(path, "\n".join(lines) + "\n")
    return {"question": question, "answer": answer}


def line(prompt: "Prompt", question: str, answer: str) -> str:
    """A prompt as a line of the file."""
    own = prompt.gold.get(answer)
    alone = len(prompt.messages) == 1 and prompt.messages[0]["role"] == "user"
    row: dict[str, Any] = {question: prompt.text if alone else prompt.messages}
    if answer != "null":
        row[answer] = own if str(own) == prompt.answer and isinstance(own, int) else prompt.answer
    for column, value in prompt.metadata.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"filter-prompts: data.train has a column {column!r} that JSON cannot hold ({error}): such "
                "prompts cannot be written to a file"
            ) from error
    return json.dumps(row | prompt.metadata, ensure_ascii=False)
