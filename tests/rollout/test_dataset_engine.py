"""Responses that a data set brings become rollouts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Fit
from helpers.run_results import NO_VALIDATION, column

from grpo_pl.models.loading import load_tokenizer
from grpo_pl.rollout.dataset import DatasetEngine
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.types import Prompt

SAMPLING = SamplingConfig(max_tokens=12, temperature=0.8)
PROMPTS = [Prompt(token_ids=[40 + n, 50, 60], text="?", answer="", seed=n) for n in range(3)]


def start(engine: Any) -> Any:
    engine.start(max_sequence_tokens=32, max_sequences=8, device=torch.device("cpu"))
    return engine


@pytest.fixture
def engine(tiny_model: Path) -> DatasetEngine:
    return start(DatasetEngine(pretrained=str(tiny_model)))


def holding(*responses: Any, column: str = "responses") -> Prompt:
    return Prompt(token_ids=[40, 50], text="What is 2 + 3?", answer="5", metadata={column: list(responses)})


def test_computed_log_probabilities_are_those_of_the_model_that_sampled(
    engine: DatasetEngine, tiny_model: Path
) -> None:
    sampled = start(InProcessEngine(str(tiny_model))).generate(PROMPTS, 2, SAMPLING)
    tokens = [sampled.token_ids[n][mask].tolist() for n, mask in enumerate(sampled.loss_mask)]
    prompts = [
        Prompt(
            token_ids=p.token_ids, text="?", answer="", metadata={"responses": [{"token_ids": t} for t in ts]}
        )
        for p, ts in zip(PROMPTS, zip(tokens[::2], tokens[1::2], strict=True), strict=True)
    ]
    given = engine.generate(prompts, 2, SAMPLING)
    assert torch.equal(given.token_ids, sampled.token_ids)
    assert torch.equal(given.truncated, sampled.truncated)
    assert (given.responses, given.token_ends) == (sampled.responses, sampled.token_ends)
    torch.testing.assert_close(given.sampling_logprobs, sampled.sampling_logprobs, rtol=5e-6, atol=1e-5)
    assert given.offline


def test_a_text_becomes_its_tokens_and_the_one_that_ends_a_response(
    engine: DatasetEngine, tiny_model: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    rollout = engine.generate([holding("It is 5", {"text": "It is", "truncated": True})], 2, SAMPLING)
    whole, cut = (rollout.token_ids[n][mask].tolist() for n, mask in enumerate(rollout.loss_mask))
    assert whole == [*tokenizer("It is 5", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert cut == tokenizer("It is", add_special_tokens=False)["input_ids"]
    assert rollout.responses == ["It is 5", "It is"]
    assert rollout.truncated.tolist() == [False, True]
    assert (rollout.sampling_logprobs[rollout.loss_mask] < 0).all()


def test_given_log_probabilities_are_taken_and_nothing_is_loaded_for_them(engine: DatasetEngine) -> None:
    said = {"token_ids": [70, 71], "logprobs": [-0.5, -2], "text": None}
    rollout = engine.generate([holding(said, said, said)], 2, SAMPLING)
    assert rollout.sampling_logprobs.tolist() == [[0.0, 0.0, -0.5, -2.0]] * 2, "the first two of three"
    assert engine._model is None


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (holding("a", column="texts"), "is missing; set DatasetEngine.column to one of the others: 'texts'"),
        (holding("a"), "has 1 responses, and data.group_size=2 asks for more"),
        (holding("a", 5), "has 5: expected a text, or an object"),
        (holding("a", None), "has None: expected a text"),
        (holding("a", {"content": "b"}), "expected a text, or token_ids"),
        (holding("a", {"text": "", "truncated": True}), "expected a text, or token_ids"),
        (holding("a", {"token_ids": []}), "expected a text, or token_ids"),
        (holding("a", {"token_ids": 7}), "expected a text, or token_ids"),
        (holding("a", {"token_ids": [7, 10**6]}), "or token_ids of the [0-9]+ that the model knows"),
        (holding("a", {"token_ids": [7, -1]}), "that the model knows"),
        (holding("a", {"token_ids": [7, True]}), "that the model knows"),
        (holding("a", {"text": "b", "logprobs": [-1.0]}), "logprobs that are not one for each of token_ids"),
        (holding("a", {"token_ids": [7], "logprobs": []}), "not one for each of token_ids"),
        (holding("a", {"token_ids": [7], "logprobs": -1}), "not one for each of token_ids"),
        (holding("a", {"token_ids": [7], "logprobs": [float("nan")]}), "that are not finite numbers"),
        (holding("a", {"token_ids": [7], "logprobs": ["-1"]}), "logprobs that are not finite numbers"),
        (holding("a", "b" * 200), "response of [0-9]+ tokens, and data.sampling.max_tokens is 12: raise it"),
    ],
)
def test_a_wrong_response_is_named(engine: DatasetEngine, prompt: Prompt, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^data.train: the column 'responses' of 'What is .*{sentence}"):
        engine.check([prompt], 2, SAMPLING)


def test_a_data_set_of_anyone_becomes_rollouts_that_a_run_learns_from(
    fit: Fit, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from helpers.repository import ROOT

    from grpo_pl.__main__ import main

    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} + {n}?"}],
            "answer": 2 * n,
            "responses": [f"It is {2 * n}", "No", f"{n}", "?"],
        }
        for n in range(6)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--data.train", "JSONL", "--data.train.path", tmp_path / "data.jsonl")
    data = (*data, "--data.train.question", "prompt", "--trainer.max_epochs", "2")
    base = ("--config", ROOT / "configs" / "tiny.yaml", "--pretrained", tiny_model, *data)
    main(["rollout", *map(str, base), "--data.engine", "DatasetEngine", "--out", str(tmp_path / "rollouts")])
    said = capsys.readouterr().out
    assert re.search(
        r"rollouts: 2 iterations, 8 prompts, 32 responses, \d+ tokens, mean reward 0.500$", said, re.M
    )
    run = fit(
        *data, "--data.engine", "ReplayEngine", "--data.engine.path", tmp_path / "rollouts", *NO_VALIDATION
    )
    assert column(run, "rollout/reward") == [0.5, 0.5]
    assert column(run, "sync/logprob_mismatch")[0] < 1e-5
    assert column(run, "rollout/truncated") == [0, 0]
