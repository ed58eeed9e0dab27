"""Rollouts in a file are those that were sampled."""

from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from grpo_pl.rollout.assembly import Response, assemble_rollout
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.parquet import file_name, save_rollout
from grpo_pl.rollout.replay import ReplayEngine
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

    responses = [response(3), response(1), response(4), response(2)]
    sampled = assemble_rollout(PROMPTS, responses, policy_version=3, temperature=temperature)
    return replace(sampled, offline=True)


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
    save_rollout(replace(rollout(), besides=[rollout(0.0)]), tmp_path / "rollouts.parquet")
    engine = started(tmp_path / "rollouts.parquet")
    assert_same(engine.generate(PROMPTS, 2, SAMPLING), rollout())
    assert_same(engine.generate(PROMPTS, 2, SamplingConfig(4, 0.0)), rollout(0.0))


def test_each_rank_gets_the_responses_to_its_own_prompts(tmp_path: Path) -> None:
    save_rollout(rollout(), tmp_path / "rollouts.parquet")
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
        ([replace(PROMPTS[0], token_ids=[5, 7])], 2, SAMPLING),
    ],
    ids=["seed", "group size", "temperature", "prompt"],
)
def test_what_is_not_in_the_file_is_refused(
    tmp_path: Path, prompts: list[Prompt], group_size: int, sampling: SamplingConfig
) -> None:
    save_rollout(rollout(), tmp_path / "rollouts.parquet")
    with pytest.raises(ValueError, match="responses at temperature"):
        started(tmp_path / "rollouts.parquet").generate(prompts, group_size, sampling)


def test_the_first_responses_of_a_group_are_a_smaller_group(tmp_path: Path) -> None:
    save_rollout(rollout(), tmp_path / "rollouts.parquet")
    smaller = started(tmp_path / "rollouts.parquet").generate(PROMPTS, 1, SAMPLING)
    assert smaller.responses == ["ééé", "éééé"]


def test_a_longer_response_than_is_asked_for_is_refused(tmp_path: Path) -> None:
    save_rollout(rollout(), tmp_path / "rollouts.parquet")
    engine = started(tmp_path / "rollouts.parquet")
    with pytest.raises(ValueError, match=r"^path=.* has a response of 4 tokens, .*max_tokens is 3: set that"):
        engine.generate(PROMPTS, 2, SamplingConfig(3, 0.5))


def test_a_folder_is_all_of_its_files_and_only_those_that_are_asked_for_are_read(tmp_path: Path) -> None:
    for n in (1, 2):
        save_rollout(part(rollout(), n - 1, 1), tmp_path / file_name(n), n)
    engine = started(tmp_path)
    (tmp_path / file_name(2)).unlink()
    assert engine.generate(PROMPTS[:1], 2, SAMPLING).responses == ["ééé", "é"]


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("temperature", None, r"is not a file of rollouts \(no temperature\)"),
        ("temperature", pa.array(["hot"] * 4), "is not a file of rollouts|has 0 responses"),
        ("logprobs", pa.array([[0.0]] * 4), "is not a file of rollouts .a response is not whole"),
        ("token_ids", pa.array([None] * 4, pa.list_(pa.int32())), "a response is not whole"),
        ("token_ids", pa.array(["words"] * 4), r"is not a file of rollouts \("),
    ],
)
def test_a_file_that_was_made_up_is_refused(
    tmp_path: Path, column: str, values: pa.Array | None, sentence: str
) -> None:
    path = tmp_path / "rollouts.parquet"
    save_rollout(rollout(), path)
    table = pq.read_table(path)
    place = table.column_names.index(column)
    changed = table.drop(column) if values is None else table.set_column(place, column, values)
    pq.write_table(changed, path)
    with pytest.raises(ValueError, match=sentence):
        started(path).generate(PROMPTS, 2, SAMPLING)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \.parquet file in it"):
        started(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"not parquet"])
def test_no_file_of_rollouts_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rollouts.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a file of rollouts"):
        started(path)
