"""Engines against transformers: same weights, same log-probabilities, whatever was sampled beside."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.engines import SAMPLING, Served, check_a_sync, mismatch, perturbed, prompts

from grpo_pl.models import CausalLM
from grpo_pl.models.loading import eos_token_ids
from grpo_pl.rollout import vllm as vllm_module
from grpo_pl.rollout.assembly import Response
from grpo_pl.rollout.engine import SamplingConfig, SamplingEngine, requests_of
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.vllm import VLLMEngine

CASES = [("InProcessEngine", "tied"), ("InProcessEngine", "untied")] + [
    pytest.param(("VLLMEngine", kind), marks=pytest.mark.vllm, id=f"VLLMEngine-{kind}")
    for kind in ("tied", "untied")
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """An engine, started amid what `test_starting_an_engine_leaves_the_process_as_it_was` looks at."""
    name, kind = request.param
    folder = request.getfixturevalue("tiny_model" if kind == "tied" else "tiny_untied_model")
    arguments = {"max_num_batched_tokens": 100} if kind == "untied" else {}
    engine = (
        InProcessEngine(str(folder))
        if name == "InProcessEngine"
        else VLLMEngine(str(folder), "float32", 0.1, engine_args=arguments)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "3")
        torch.manual_seed(5)
        before = surroundings()
        torch.manual_seed(5)
        one = Served(engine, folder)
        one.before, one.after = before, surroundings()
    yield one
    one.engine.shutdown()


def surroundings() -> tuple[list[float], str | None, int]:
    """The next random numbers, a variable that vLLM sets, and the threads."""
    return torch.rand(3).tolist(), os.environ.get("LOCAL_WORLD_SIZE"), torch.get_num_threads()


def test_starting_an_engine_leaves_the_process_as_it_was(served: Served) -> None:
    assert served.after == served.before
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)


def test_after_a_sync_the_logprobs_are_those_of_the_trainer(served: Served) -> None:
    check_a_sync(served)


def test_without_the_repack_a_tied_head_would_be_stale(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(served.engine, VLLMEngine) or "untied" in served.folder.name:
        return
    served.sync(CausalLM(str(served.folder)).build())
    monkeypatch.setattr(vllm_module, "repack_tied_head", lambda _: None)
    model = perturbed(served.folder)
    served.sync(model)
    assert mismatch(model, served.engine.generate(prompts(served.folder), 4, SAMPLING)).mean() > 1e-3


def test_a_response_depends_on_its_seed_and_not_on_its_batch(served: Served) -> None:
    some = prompts(served.folder)
    whole = served.engine.generate(some, 4, SAMPLING)
    again = served.engine.generate(some, 4, SAMPLING)
    half = served.engine.generate(some[:1], 2, SAMPLING)
    assert torch.equal(whole.token_ids, again.token_ids)
    assert torch.equal(whole.sampling_logprobs, again.sampling_logprobs)
    width = half.token_ids.shape[1]
    assert torch.equal(half.token_ids, whole.token_ids[:2, :width])
    assert len({tuple(row) for row in whole.token_ids[:4].tolist()}) > 1


def test_a_request_that_comes_while_others_are_under_way_is_answered_as_if_alone(served: Served) -> None:
    requests = requests_of(prompts(served.folder), 2, SAMPLING)
    limits = [replace(SAMPLING, max_tokens=2 + n) for n in range(len(requests))]
    requests = [replace(r, sampling=limit) for r, limit in zip(requests, limits, strict=True)]
    alone = {}
    for request in requests:
        served.engine.submit(request)
        alone |= answered(served.engine, 1)
    for request in requests[:2]:
        served.engine.submit(request)
    together = dict(served.engine.step())
    for request in requests[2:]:
        served.engine.submit(request)
        together.update(served.engine.step())
    together |= answered(served.engine, len(requests) - len(together))
    assert {n: one.token_ids for n, one in together.items()} == {n: one.token_ids for n, one in alone.items()}
    for n, one in together.items():
        assert one.logprobs == pytest.approx(alone[n].logprobs, abs=1e-5)
        assert one.logprobs == alone[n].logprobs or isinstance(served.engine, InProcessEngine)
    assert served.engine.step() == [], "nothing is under way"
    assert [len(alone[n].token_ids) <= 2 + n for n in range(len(requests))] == [True] * len(requests)


def test_requests_that_are_abandoned_are_answered_in_no_later_rollout(served: Served) -> None:
    some = prompts(served.folder)
    whole = served.engine.generate(some, 2, SAMPLING)
    for request in requests_of(some[::-1], 2, SAMPLING):
        served.engine.submit(request)
    served.engine.abandon()
    assert served.engine.step() == []
    assert torch.equal(served.engine.generate(some, 2, SAMPLING).token_ids, whole.token_ids)


def answered(engine: SamplingEngine, count: int) -> dict[int, Response]:
    """The next so many answers."""
    answers: dict[int, Response] = {}
    while len(answers) < count:
        answers.update(engine.step())
    return answers


def test_responses_stand_after_their_prompts_and_end_or_are_cut(served: Served) -> None:
    some = prompts(served.folder)
    rollout = served.engine.generate(some, 8, SAMPLING)
    eos = eos_token_ids(str(served.folder))
    assert rollout.group_ids.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    for n, sample in enumerate(rollout.samples):
        start = len(sample.prompt.token_ids)
        assert rollout.token_ids[n, :start].tolist() == sample.prompt.token_ids
        assert rollout.loss_mask[n].nonzero()[:, 0].tolist() == list(
            range(start, start + sample.response_tokens)
        )
        last = int(rollout.token_ids[n, start + sample.response_tokens - 1])
        assert sample.truncated == (last not in eos)
        assert sample.truncated == (sample.response_tokens == SAMPLING.max_tokens) or last in eos


def test_greedy_takes_the_likeliest_token(served: Served) -> None:
    model = CausalLM(str(served.folder)).build()
    served.sync(model)
    rollout = served.engine.generate(prompts(served.folder), 2, SamplingConfig(max_tokens=6, temperature=0.0))
    assert rollout.responses[0] == rollout.responses[1]
    with torch.no_grad():
        logits = model.language_model(rollout.token_ids).logits
    likeliest = logits.argmax(-1)[:, :-1]
    assert torch.equal(
        likeliest[rollout.loss_mask[:, 1:]], rollout.token_ids[:, 1:][rollout.loss_mask[:, 1:]]
    )


def test_the_engine_knows_which_weights_it_has(served: Served) -> None:
    served.sync(CausalLM(str(served.folder)).build(), version=7)
    assert served.engine.generate(prompts(served.folder), 1, SAMPLING).policy_version == 7


@pytest.mark.slow
@pytest.mark.vllm
def test_the_real_model_agrees_after_a_sync_too(smollm: Path) -> None:
    served = Served(VLLMEngine(str(smollm), "float32", 0.25), smollm)
    model = perturbed(smollm, scale=0.02)
    served.sync(model)
    gaps = mismatch(model, served.engine.generate(prompts(smollm), 4, SAMPLING))
    served.engine.shutdown()
    assert gaps.mean() < 1e-4


def test_more_prompts_than_vllm_reads_at_once_are_answered_with_their_seeds(served: Served) -> None:
    """vLLM rewinds the generator of a prompt read in pieces, which a CPU's cannot: none may be cut.

    The untied one reads 100 tokens at once.
    """
    model = CausalLM(str(served.folder)).build()
    served.sync(model)
    rollout = served.engine.generate(prompts(served.folder), 12, SAMPLING)
    assert sum(len(sample.prompt.token_ids) for sample in rollout.samples) > 100
    assert mismatch(model, rollout).mean() < 1e-4


def test_the_likeliest_tokens_are_the_trainers_whatever_was_sampled(served: Served) -> None:
    """Also where the sampled token is none of them: it is not added, nor does asking change what is drawn."""
    some, asked = prompts(served.folder), replace(SAMPLING, top_logprobs=3)
    model = perturbed(served.folder)
    served.sync(model)
    rollout = served.engine.generate(some, 4, asked)
    assert rollout.top_tokens is not None
    assert torch.equal(rollout.token_ids, served.engine.generate(some, 4, SAMPLING).token_ids)
    with torch.no_grad():
        scored = model(
            rollout.token_ids, rollout.loss_mask, SAMPLING.temperature, candidates=rollout.top_tokens
        )
    inside = rollout.loss_mask
    torch.testing.assert_close(scored.candidates[inside], rollout.top_logprobs[inside], rtol=0, atol=1e-4)
    chosen = rollout.token_ids[..., None] == rollout.top_tokens
    least = rollout.top_logprobs[..., -1]
    assert not chosen.any(-1)[inside].all()
    assert (rollout.sampling_logprobs <= least + 1e-4)[inside & ~chosen.any(-1)].all()
    assert (rollout.top_tokens[~inside] == -1).all()
