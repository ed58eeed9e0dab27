"""Rollouts in Parquet files, one for each iteration: for other losses, and for anyone's tools."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from grpo_pl.rollout.assembly import EpisodeRow
from grpo_pl.rollout.support import supports_of
from grpo_pl.system.atomic_files import replacing
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Rollout, SampleRecord

RESPONSE = pa.schema(
    {
        "prompt_seed": pa.uint64(),
        "prompt_token_ids": pa.list_(pa.int32()),
        "temperature": pa.float64(),
        "policy_version": pa.int64(),
        "token_ids": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float32()),
        "text": pa.string(),
        "truncated": pa.bool_(),
        "token_ends": pa.list_(pa.int32()),
    }
)
"""One row per response; those to one prompt stand together, in order."""
SUPPORT = pa.schema({"candidates": pa.list_(pa.list_(pa.int32()))})
"""The tokens that each token was drawn from: only in files of truncated sampling."""
EPISODE = pa.schema(
    {
        "asked_token_ids": pa.list_(pa.int32()),
        "row_token_ids": pa.list_(pa.int32()),
        "turns": pa.list_(pa.int32()),
        "episode": pa.int64(),
        "stop": pa.string(),
        "outcome": pa.string(),
        "turn_rewards": pa.list_(pa.float64()),
        "transcript": pa.string(),
    }
)
"""The fields of `EpisodeRow`: only in files of environments. The transcript is JSON; a forked episode has
several rows, and `token_ids` and what belongs to them are the sampled tokens of each. `asked_token_ids` are
the prompt of the data, where the environment has opened the episode with others."""
ABOUT_IT = {
    "iteration": pa.int64(),
    "prompt": pa.string(),
    "learned": pa.bool_(),
    "reward": pa.float64(),
}
"""Further columns, beside `rewards/<name>` for each reward, as in `metrics.csv`; `learned` is False for what
was sampled besides."""
Group = tuple[float, int]
"""Temperature and seed, which identify a group of a run."""


def file_name(iteration: int, rank: int = 0, ranks: int = 1) -> str:
    """The file of an iteration, counted from 1; each of several ranks has its own."""
    return f"iteration-{iteration:04d}{f'-rank-{rank}' if ranks > 1 else ''}.parquet"


def save_rollout(
    rollout: Rollout, path: Path, iteration: int = 1, records: Sequence[SampleRecord] = ()
) -> None:
    """Write everything that was sampled in an iteration, counted from 1; the file is complete or absent.

    Each group of the rollouts `besides` comes once, with its rewards if it was scored; `records` are the
    rewards of the rollout itself.
    """
    rows: list[dict[str, Any]] = []
    written: set[Group] = set()
    for sampled in (rollout, *rollout.besides):
        learned = sampled is rollout
        mine = (row | {"learned": learned} for row in as_rows(sampled, iteration, records if learned else ()))
        fresh = [row for row in mine if group_of(row) not in written]
        written |= {group_of(row) for row in fresh}
        rows += fresh
    rewards = {f"rewards/{name}": pa.float64() for name in (records[0].rewards if records else ())}
    support = SUPPORT if rollout.candidates is not None else ()
    episode = EPISODE if rollout.turns is not None else ()
    schema = pa.schema([*RESPONSE, *support, *episode, *pa.schema(ABOUT_IT | rewards)])
    with replacing(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)


def as_rows(rollout: Rollout, iteration: int, records: Sequence[SampleRecord]) -> Iterator[dict[str, Any]]:
    """The rows of a rollout's responses."""
    samples = {n: i for i, rows in enumerate(rollout.rows_of_episodes) for n in rows}
    for n, prompt in enumerate(rollout.prompts):
        mask = rollout.loss_mask[n]
        yield (
            {
                "prompt_seed": prompt.seed,
                "prompt_token_ids": prompt.token_ids,
                "temperature": rollout.temperature,
                "policy_version": rollout.policy_version,
                "token_ids": rollout.token_ids[n][mask].tolist(),
                "logprobs": rollout.sampling_logprobs[n][mask].tolist(),
                "text": rollout.responses[n],
                "truncated": bool(rollout.truncated[n]),
                "token_ends": rollout.token_ends[n],
                "iteration": iteration,
                "prompt": prompt.text,
            }
            | rewards_of(rollout, records, samples[n])
            | support_of(rollout, n)
            | episode_of(rollout, n, samples[n])
        )


def support_of(rollout: Rollout, n: int) -> dict[str, list[list[int]]]:
    """The support of each token of response n; nothing where the whole vocabulary was."""
    if rollout.candidates is None:
        return {}
    supports = supports_of(rollout.candidates[n][rollout.loss_mask[n]])
    return {"candidates": [support.tolist() for support in supports]}


def episode_of(rollout: Rollout, n: int, episode: int) -> dict[str, Any]:
    """The row of an episode; nothing where there is no environment."""
    if rollout.turns is None:
        return {}
    end, prompt = 1 + int(rollout.loss_mask[n].nonzero().max()), rollout.prompts[n]
    return {
        "asked_token_ids": prompt.asked or prompt.token_ids,
        "row_token_ids": rollout.token_ids[n, :end].tolist(),
        "turns": rollout.turns[n, :end].tolist(),
        "episode": episode,
        "stop": rollout.stops[n],
        "outcome": rollout.outcomes[n],
        "turn_rewards": rollout.turn_rewards[n],
        "transcript": json.dumps(rollout.transcripts[n]),
    }


def rewards_of(rollout: Rollout, records: Sequence[SampleRecord], n: int) -> dict[str, float | None]:
    """The total of sample `n` and its parts, from `records` or from what dynamic sampling scored."""
    by_name: dict[str, float | None]
    if records:
        total, by_name = records[n].reward, records[n].rewards
    elif rollout.rewards is not None:
        scores = rollout.rewards
        total = float(scores.total[n]) if scores.scored[n] else None
        by_name = {name: column[n] for name, column in scores.by_name.items()}
    else:
        return {}
    return {"reward": total} | {f"rewards/{name}": reward for name, reward in by_name.items()}


def group_of(row: dict[str, Any]) -> Group:
    """The group of a response."""
    return row["temperature"], row["prompt_seed"]


def files_of(path: Path) -> list[Path]:
    """The files of a folder, in the order of their iterations; a file itself."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Those of some columns that a file of rollouts has; the refusal of another file begins with the path."""
    try:
        has = pq.read_schema(path).names
        missing = [name for name in RESPONSE.names if name not in has]
        if not missing:
            return pq.read_table(path, columns=[c for c in columns if c in has], partitioning=None)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is not a file of rollouts ({reason})") from error
    raise ConfigError(f"{path} is not a file of rollouts (no {', '.join(missing)})")


def read_rows(path: Path, *names: str) -> list[dict[str, Any]]:
    """Some columns of a file, row by row; refuses other types."""
    table = read_columns(path, names)
    every = {field.name: field for field in (*RESPONSE, *SUPPORT, *EPISODE)}
    try:
        rows: list[dict[str, Any]] = table.cast(pa.schema([every[n] for n in table.column_names])).to_pylist()
    except pa.ArrowException as error:
        raise ConfigError(f"{path} is not a file of rollouts ({str(error).splitlines()[0]})") from error
    return rows


def groups_in(path: Path) -> list[Group]:
    """The group of each response of a file, in order; a forked episode counts once."""
    rows = enumerate(read_rows(path, "temperature", "prompt_seed", "episode"))
    return [group for group, _ in dict.fromkeys((group_of(row), row.get("episode", n)) for n, row in rows)]


def read_groups(path: Path) -> dict[Group, list[dict[str, Any]]]:
    """The responses of a file by group, without the further columns; refuses incomplete responses."""
    groups: dict[Group, list[dict[str, Any]]] = {}
    rows = read_rows(path, *RESPONSE.names, *SUPPORT.names, *EPISODE.names)
    for row in rows:
        support = row.pop("candidates", None)
        lengths = {len(row[name] or ()) for name in ("token_ids", "logprobs", "token_ends")}
        lengths |= set() if support is None else {len(support)}
        if "turns" in row:
            lengths.add(sum(turn > 0 for turn in row["turns"] or ()))
        if None in row.values() or len(lengths) != 1 or 0 in lengths:
            raise ConfigError(f"{path} is not a file of rollouts (a response is not whole: {row!r:.200})")
        candidates = support and [torch.tensor(ids, dtype=torch.int32) for ids in support]
        groups.setdefault(group_of(row), []).append(row | {"candidates": candidates, "row": row_of(row)})
    return groups


def row_of(row: dict[str, Any]) -> EpisodeRow | None:
    """The row of an episode as it was assembled; None where there is no environment."""
    if "turns" not in row:
        return None
    given = {name: row[name] for name in EPISODE.names if not name.endswith("token_ids")}
    given["transcript"] = json.loads(row["transcript"])
    return EpisodeRow(token_ids=row["row_token_ids"], **given)


def forget_iterations(folder: Path, after: int) -> None:
    """Remove the files of later iterations, which a resumed run will write again."""
    for path in folder.glob("iteration-*.parquet"):
        match = re.match(r"iteration-(\d+)", path.name)
        if match and int(match[1]) > after:
            path.unlink()
