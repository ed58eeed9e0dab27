"""Rollouts in a file are those that were sampled."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from grpo_pl.rollout.engine import Response, SamplingConfig, assemble_rollout
from grpo_pl.rollout.replay import ReplayEngine, save_rollouts
from grpo_pl.rollout.shared import part
from grpo_pl.types import Prompt, Rollout

SAMPLING = SamplingConfig(max_tokens=4, temperature=0.5)
PROMPTS = [
    Prompt(token_ids=[5, 6], text="What is 2 + 3?", answer="5", seed=17),
    Prompt(token_ids=[7], text="And 2 + 2?", answer="4", seed=2**63 + 1),
]


def rollout(temperature: float = 0.5) -> Rollout:
    def response(n: int) -> Response:
        tokens = list(range(10, 10 + n))
        return Response(
            token_ids=tokens,
            logprobs=[-0.1 * token for token in tokens],
            text="é" * n,
            truncated=n == 4,
            token_ends=list(range(1, n + 1)),
        )

    groups = [[response(3), response(1)], [response(4), response(2)]]
    return assemble_rollout(PROMPTS, groups, policy_version=3, temperature=temperature)


def assert_same(a: Rollout, b: Rollout) -> None:
    for field in fields(Rollout):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        assert same, field.name


def started(path: Path) -> ReplayEngine:
    engine = ReplayEngine(str(path))
    engine.start(max_sequence_tokens=8, max_sequences=4, device=torch.device("cpu"))
    return engine


def test_a_stored_rollout_comes_back_to_the_bit(tmp_path: Path) -> None:
    save_rollouts([rollout(), rollout(0.0)], tmp_path / "rollouts.parquet")
    engine = started(tmp_path / "rollouts.parquet")
    assert_same(engine.generate(PROMPTS, 2, SAMPLING), rollout())
    assert_same(engine.generate(PROMPTS, 2, SamplingConfig(4, 0.0)), rollout(0.0))


def test_each_rank_gets_the_responses_to_its_own_prompts(tmp_path: Path) -> None:
    save_rollouts([rollout()], tmp_path / "rollouts.parquet")
    second = started(tmp_path / "rollouts.parquet").generate(PROMPTS[1:], 2, SAMPLING)
    assert_same(second, part(rollout(), 1, 1))
    assert second.responses == ["éééé", "éé"]
    assert second.token_ids.tolist() == [[7, 10, 11, 12, 13], [7, 10, 11, 0, 0]]


@pytest.mark.parametrize(
    ("prompts", "group_size", "sampling"),
    [
        ([Prompt(token_ids=[5, 6], text="What?", answer="5", seed=18)], 2, SAMPLING),
        (PROMPTS, 3, SAMPLING),
        (PROMPTS, 2, SamplingConfig(4, 1.0)),
    ],
    ids=["seed", "group size", "temperature"],
)
def test_what_is_not_in_the_file_is_refused(
    tmp_path: Path, prompts: list[Prompt], group_size: int, sampling: SamplingConfig
) -> None:
    save_rollouts([rollout()], tmp_path / "rollouts.parquet")
    with pytest.raises(ValueError, match="responses at temperature"):
        started(tmp_path / "rollouts.parquet").generate(prompts, group_size, sampling)


@pytest.mark.parametrize("content", [None, b"", b"not parquet"])
def test_no_file_of_rollouts_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rollouts.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is no file of rollouts"):
        started(path)
