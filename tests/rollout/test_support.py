"""Truncated sampling keeps what each token was drawn from, and everything is scored among that."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.commands import Fit
from helpers.engines import Served, prompts, same_rollout
from helpers.run_results import NO_VALIDATION, column
from transformers import TopKLogitsWarper, TopPLogitsWarper

from grpo_pl.models import CausalLM, LanguageModel
from grpo_pl.rollout.dynamic_sampling import replace_group
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.overlapped import as_request
from grpo_pl.rollout.parquet import save_rollout
from grpo_pl.rollout.replay import ReplayEngine
from grpo_pl.rollout.shared import part
from grpo_pl.rollout.stored import StoredRollouts
from grpo_pl.rollout.support import NONE, kept_tokens, support_bytes
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.types import Rollout

WAYS = [SamplingConfig(8, 0.8, top_p=0.7), SamplingConfig(8, 0.8, top_k=5), SamplingConfig(8, 0.8, 0.7, 20)]
NAMES = ["top_p", "top_k", "both"]


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Served:
    return Served(InProcessEngine(str(tiny_model)), tiny_model)


def scored(model: LanguageModel, rollout: Rollout) -> torch.Tensor:
    """The log-probability of each sampled token among those that it was drawn from."""
    with torch.no_grad():
        chosen = rollout.token_ids, rollout.loss_mask, rollout.temperature
        return model(*chosen, candidates=rollout.candidates, renormalized=True).logprobs[rollout.loss_mask]


def check_support(model: LanguageModel, rollout: Rollout, sampling: SamplingConfig) -> None:
    """The support of each token is what the trainer's own logits give, and so is its log-probability."""
    mask, candidates = rollout.loss_mask, rollout.candidates
    assert candidates is not None
    assert (candidates == rollout.token_ids[..., None]).any(-1)[mask].all()
    assert (candidates[~mask] == NONE).all()
    with torch.no_grad():
        logits = model.language_model(rollout.token_ids).logits[:, :-1][mask[:, 1:]] / rollout.temperature
    kept = kept_tokens(logits, sampling.top_p, sampling.top_k)
    given = torch.zeros_like(kept).scatter(-1, candidates[mask].clamp(min=0).long(), 1)
    given[:, 0] = (candidates[mask] == 0).any(-1)
    assert torch.equal(given, kept)
    assert torch.allclose(scored(model, rollout), rollout.sampling_logprobs[mask], atol=1e-4)


# --------------------------------------------------------------------------------------------- what is kept


def test_top_k_keeps_all_that_tie_with_the_last_and_top_p_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    kept = {(p, k): kept_tokens(logits, p, k)[0].tolist() for p in (1.0, 0.79, 0.4) for k in (0, 1, 3)}
    assert kept[1.0, 0] == [True] * 4
    assert kept[1.0, 1] == [True, False, False, False]
    assert kept[1.0, 3] == [True] * 4
    assert kept[0.79, 0] == [True, True, False, False]
    assert kept[0.4, 0] == [True, False, False, False]
    assert kept[0.4, 3] == [True, False, False, False]


def test_top_p_is_a_share_of_what_top_k_keeps() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()  # of the first two 0.57 and 0.43, of all 0.4 and 0.3
    assert kept_tokens(logits, 0.5, 2)[0].tolist() == [True, False, False, False]
    assert kept_tokens(logits, 0.5, 0)[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (1.0, 7), (0.6, 30)])
def test_what_is_kept_is_what_transformers_keeps(top_p: float, top_k: int) -> None:
    logits = torch.randn(50, 200, generator=torch.Generator().manual_seed(0)) * 3
    theirs = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    theirs = TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs
    assert torch.equal(kept_tokens(logits, top_p, top_k), theirs > -torch.inf)


# ------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("sampling", WAYS, ids=NAMES)
def test_the_engines_logprobs_are_the_trainers_among_the_support(
    served: Served, sampling: SamplingConfig
) -> None:
    model = CausalLM(str(served.folder)).build()
    check_support(model, served.engine.generate(prompts(served.folder), 4, sampling), sampling)


@pytest.mark.vllm
def test_vllm_says_what_it_kept_where_top_k_bounds_it(tiny_model: Path) -> None:
    served = Served(VLLMEngine(str(tiny_model), "float32", 0.1), tiny_model)
    model = CausalLM(str(tiny_model)).build()
    for sampling in WAYS[1:]:
        check_support(model, served.engine.generate(prompts(tiny_model), 4, sampling), sampling)
    served.engine.shutdown()


def test_tokens_are_drawn_with_the_renormalised_probabilities(served: Served) -> None:
    """Pearson's statistic of 4,000 first tokens, against its 99.9th percentile for 5 tokens."""
    sampling = SamplingConfig(1, 0.8, top_k=5)
    rollout = served.engine.generate(prompts(served.folder)[:1], 4000, sampling)
    assert rollout.candidates is not None
    support = rollout.candidates[0, rollout.loss_mask[0]][0].long()
    with torch.no_grad():
        model = CausalLM(str(served.folder)).build()
        logits = model.language_model(rollout.token_ids[:1, :-1]).logits[0, -1] / 0.8
    expected = 4000 * logits[support].softmax(-1)
    counts = (rollout.token_ids[:, -1:] == support).sum(0)
    assert int(counts.sum()) == 4000
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.47


def test_a_truncation_that_keeps_everything_changes_no_bit(served: Served) -> None:
    some, whole = prompts(served.folder), SamplingConfig(8, 0.8)
    plain = served.engine.generate(some, 4, whole)
    assert plain.candidates is None
    assert same_rollout(served.engine.generate(some, 4, replace(whole, top_k=10**6)), plain)


def test_greedy_responses_have_no_support(served: Served) -> None:
    assert not (greedy := SamplingConfig(4, 0.0, top_p=0.5)).truncates
    assert served.engine.generate(prompts(served.folder), 1, greedy).candidates is None


# ---------------------------------------------------------------------------------- kept, cut and replaced


def test_a_support_comes_back_from_files_and_belongs_to_its_request(
    served: Served, tiny_model: Path, tmp_path: Path
) -> None:
    some, sampling = prompts(tiny_model), WAYS[0]
    stored = StoredRollouts(served.engine, tmp_path / "stored")
    first, again = (stored.generate(some, 2, sampling) for _ in range(2))
    assert torch.equal(first.candidates, again.candidates)
    assert len({as_request(some, 2, way) for way in (*WAYS, SamplingConfig(8, 0.8))}) == 4
    save_rollout(first, tmp_path / "kept.parquet")
    replay = ReplayEngine(str(tmp_path / "kept.parquet"))
    replay.start(max_sequence_tokens=64, max_sequences=4, device=torch.device("cpu"))
    assert torch.equal(replay.generate(some, 2, sampling).candidates, first.candidates)
    with pytest.raises(ValueError, match=r"was truncated, .* top_p=1 and top_k=0: set them"):
        replay.generate(some, 2, SamplingConfig(8, 0.8))
    second = part(first, 1, 1)
    assert torch.equal(second.candidates, first.candidates[2:4, : second.token_ids.shape[1]])


def test_a_support_is_asked_for_where_the_file_has_none(served: Served, tmp_path: Path) -> None:
    some = prompts(served.folder)
    save_rollout(served.engine.generate(some, 2, SamplingConfig(8, 0.8)), tmp_path / "kept.parquet")
    replay = ReplayEngine(str(tmp_path / "kept.parquet"))
    replay.start(max_sequence_tokens=64, max_sequences=4, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"says for no token which others could be drawn"):
        replay.generate(some, 2, WAYS[0])


def test_a_replaced_group_brings_its_support(served: Served) -> None:
    one, *others = prompts(served.folder)
    ours = served.engine.generate([one], 2, SamplingConfig(3, 0.8, top_k=3))
    theirs = served.engine.generate(others, 2, SamplingConfig(8, 0.8, top_k=9))
    model, mixed = CausalLM(str(served.folder)).build(), replace_group(ours, 0, theirs, 1)
    assert torch.equal(scored(model, mixed), scored(model, part(theirs, 1, 1)))


# ---------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("option", [("top_p", 0.6), ("top_k", 4)], ids=["top_p", "top_k"])
def test_the_first_ratio_is_one_and_the_reference_is_the_policy(fit: Fit, option: tuple[str, float]) -> None:
    """With log-probabilities over the whole vocabulary the mismatch would be the log of the kept mass."""
    folder = fit(
        f"--data.sampling.{option[0]}", option[1], "--data.minibatches", 1, "--trainer.max_epochs", 1,
        *NO_VALIDATION,
    )  # fmt: skip
    assert column(folder, "sync/logprob_mismatch")[0] < 1e-5
    assert column(folder, "train/kl")[0] == 0.0
    assert column(folder, "train/clip_fraction")[0] == 0.0


ENGINES = {
    "servers": (
        ("--data.engine", "ServerEngine", "--data.engine.urls", '["http://127.0.0.1:9"]'),
        "data.sampling has top_p=0.9 and top_k=0, and data.engine does not say which tokens it kept",
    ),
    "vLLM": (("--data.engine", "VLLMEngine"), "data.sampling.top_k=0 with top_p=0.9: data.engine says"),
}


@pytest.mark.parametrize("kind", ENGINES)
def test_an_engine_that_does_not_say_what_it_kept_is_refused(
    fit: Fit, refused: Callable[..., str], kind: str
) -> None:
    arguments, sentence = ENGINES[kind]
    assert sentence in refused(fit, *arguments, "--data.sampling.top_p", 0.9)


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.0), ("top_p", 1.2), ("top_k", -1)])
def test_truncation_that_keeps_nothing_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key}={value}"):
        SamplingConfig(**{key: value})


def test_plan_counts_at_most_top_k_tokens_or_the_whole_vocabulary() -> None:
    assert support_bytes(20, 49_152, 1000) == 80_000
    assert support_bytes(0, 49_152, 1000) == 4 * 49_152 * 1000
