"""The sampler's likeliest tokens travel with a rollout, and engines without them are refused."""

import pytest
import torch
from helpers.commands import Fit
from helpers.run_results import NO_VALIDATION, column

from grpo_pl.rollout.assembly import Response, assemble_rollout
from grpo_pl.rollout.dynamic_sampling import replace_group
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.overlapped import OverlappedEngine, as_request
from grpo_pl.rollout.replay import ReplayEngine
from grpo_pl.rollout.server.engine import ServerEngine
from grpo_pl.rollout.shared import part
from grpo_pl.types import Prompt, Rollout


def rollout(*lengths: int, base: int) -> Rollout:
    """A group of two responses for each pair of lengths; token t of a response has candidates base + t."""
    responses = [
        Response(
            token_ids=[base] * n,
            logprobs=[-1.0] * n,
            text="x" * n,
            truncated=False,
            token_ends=list(range(n)),
            top=(
                base + torch.arange(n)[:, None] + torch.tensor([[0, 100]]),
                -torch.ones(n, 2) * torch.tensor([0.5, 2.0]),
            ),
        )
        for n in lengths
    ]
    asked = [Prompt(token_ids=[1], text="?", answer="") for _ in range(len(lengths) // 2)]
    return assemble_rollout(asked, responses, policy_version=0, temperature=1.0)


def test_they_stand_at_their_tokens_and_nowhere_else() -> None:
    made = rollout(2, 1, base=10)
    assert made.top_tokens is not None
    assert made.top_tokens[0].tolist() == [[-1, -1], [10, 110], [11, 111]]
    assert made.top_tokens[1].tolist() == [[-1, -1], [10, 110], [-1, -1]]
    assert made.top_logprobs[1].tolist() == [[0, 0], [-0.5, -2.0], [0, 0]]


def test_a_replaced_group_and_a_part_bring_theirs() -> None:
    changed = replace_group(rollout(1, 2, 2, 2, base=10), 1, rollout(4, 3, base=50), 0)
    assert changed.top_tokens.shape == changed.top_logprobs.shape == (4, 5, 2)
    assert changed.top_tokens[2, :, 0].tolist() == [-1, 50, 51, 52, 53]
    assert changed.top_tokens[0, :, 0].tolist() == [-1, 10, -1, -1, -1]
    second = part(changed, 1, 1)
    assert torch.equal(second.top_tokens, changed.top_tokens[2:])
    assert part(changed, 0, 1).top_logprobs.shape == (2, 3, 2)


@pytest.mark.parametrize(
    "engine",
    [
        ReplayEngine("nowhere"),
        ServerEngine(urls=["http://127.0.0.1:1"]),
        OverlappedEngine(ServerEngine(urls=["http://127.0.0.1:1"])),
    ],
)
def test_an_engine_that_does_not_give_them_is_refused_in_one_sentence(engine: RolloutEngine) -> None:
    with pytest.raises(ValueError, match=r"top_logprobs=4, and .* gives none of its likeliest tokens"):
        engine.check_sampling(SamplingConfig(top_logprobs=4))


def test_engines_that_give_them_are_taken_and_a_request_with_them_is_another_one() -> None:
    asked = SamplingConfig(top_logprobs=4)
    InProcessEngine("").check_sampling(asked)
    OverlappedEngine(InProcessEngine("")).check_sampling(asked)
    assert as_request([], 1, asked) != as_request([], 1, SamplingConfig())
    with pytest.raises(ValueError, match="top_logprobs=4: not with a top_p or top_k"):
        SamplingConfig(top_logprobs=4, top_p=0.9)


def test_an_engine_that_samples_ahead_sends_them_to_the_learner(fit: Fit) -> None:
    folder = fit(
        *("--data.engine", "OverlappedEngine", "--data.engine.engine", "InProcessEngine"),
        *("--model.loss", "Reinforce", "--model.terms", '{"centering": {"class_path": "ScoreCentering"}}'),
        *("--data.sampling.top_logprobs", "16", "--trainer.max_epochs", "2", *NO_VALIDATION),
    )
    assert all(0 < tail < 1 for tail in column(folder, "sync/sampler_tail"))
