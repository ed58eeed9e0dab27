"""Rollouts in a file, and an engine that answers from it."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from typing_extensions import override

from grpo_pl.rollout.engine import Response, RolloutEngine, SamplingConfig, assemble_rollout
from grpo_pl.types import Prompt, Rollout

SCHEMA = pa.schema(
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
"""A row is a response; those to one prompt stand together, in their order."""


def save_rollouts(rollouts: Sequence[Rollout], path: Path) -> None:
    """Write rollouts as a Parquet file: token ids, the engine's log-probabilities in nats, texts."""
    rows = [row for rollout in rollouts for row in as_rows(rollout)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def as_rows(rollout: Rollout) -> Iterator[dict[str, Any]]:
    """The responses of a rollout as the file has them."""
    for n, prompt in enumerate(rollout.prompts):
        mask = rollout.loss_mask[n]
        yield {
            "prompt_seed": prompt.seed,
            "prompt_token_ids": prompt.token_ids,
            "temperature": rollout.temperature,
            "policy_version": rollout.policy_version,
            "token_ids": rollout.token_ids[n][mask].tolist(),
            "logprobs": rollout.sampling_logprobs[n][mask].tolist(),
            "text": rollout.responses[n],
            "truncated": bool(rollout.truncated[n]),
            "token_ends": rollout.token_ends[n],
        }


@final
class ReplayEngine(RolloutEngine):
    """Answers from a file that `save_rollout` wrote, whatever the weights: the same rollout for any loss.

    Args:
        path: The file.
        pretrained: Not read; every engine has it.
    """

    def __init__(self, path: str, pretrained: str = "") -> None:
        self.path, self.pretrained = path, pretrained
        self._groups: dict[tuple[float, ...], list[dict[str, Any]]] = {}

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        try:
            rows = pq.read_table(self.path, schema=SCHEMA).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"data.engine.path={self.path} is no file of rollouts ({reason})") from error
        if empty := sorted({key for row in rows for key, value in row.items() if value is None}):
            raise ValueError(f"data.engine.path={self.path} is no file of rollouts (no {', '.join(empty)})")
        for row in rows:
            asked = (row["temperature"], row["prompt_seed"], *row["prompt_token_ids"])
            self._groups.setdefault(asked, []).append(row)

    @override
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        for _ in weights:  # collective where they are sharded
            pass

    @override
    def generate(self, prompts: Sequence[Prompt], group_size: int, sampling: SamplingConfig) -> Rollout:
        groups = [self._group(prompt, group_size, sampling) for prompt in prompts]
        responses = [
            [Response(**{key: row[key] for key in Response.__annotations__}) for row in group]
            for group in groups
        ]
        version = min((row["policy_version"] for group in groups for row in group), default=0)
        return assemble_rollout(prompts, responses, policy_version=version, temperature=sampling.temperature)

    def _group(self, prompt: Prompt, group_size: int, sampling: SamplingConfig) -> list[dict[str, Any]]:
        rows = self._groups.get((sampling.temperature, prompt.seed, *prompt.token_ids), [])
        if len(rows) != group_size:
            raise ValueError(
                f"data.engine.path={self.path} has {len(rows)} responses at temperature "
                f"{sampling.temperature} to the prompt {prompt.text[:40]!r} and {group_size} are asked for: "
                "train with the data settings and the data.seed that it was sampled with"
            )
        return rows

    @override
    def shutdown(self) -> None:
        self._groups = {}
