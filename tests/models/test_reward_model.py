"""Reward models against transformers' own heads, and how they read a response."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.exact import few
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2ForTokenClassification,
)

from grpo_pl.models import EncodedResponse, RewardModel

TEXTS = st.text(st.sampled_from("ab 7.\n\té€漢🙂<|>"), max_size=30)


def pad(rows: list[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [len(row) for row in rows]
    width = max(lengths)
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows]), torch.tensor(lengths)


@pytest.fixture(scope="session")
def outcome(outcome_model: Path) -> RewardModel:
    return RewardModel.load(str(outcome_model), "outcome", "float32")


@pytest.fixture(scope="session")
def process(process_model: Path) -> RewardModel:
    return RewardModel.load(str(process_model), "process", "float32")


ROWS = [[5, 6, 7, 8, 9], [9, 0], [30, 31, 2, 2]]


@torch.no_grad()
def test_the_outcome_is_the_logit_of_transformers(outcome: RewardModel, outcome_model: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(outcome_model).eval()
    scores = outcome(*pad(ROWS, 0))
    for row, ours in zip(ROWS, scores, strict=True):
        logit = theirs(torch.tensor([row])[:, : len(row)]).logits[0, 0]
        last_real = max(i for i, token in enumerate(row) if token != theirs.config.pad_token_id)
        assert float(ours[last_real]) == pytest.approx(float(logit), abs=1e-5)


@torch.no_grad()
def test_scores_are_float32_numbers_under_autocast(outcome: RewardModel) -> None:
    """The trunk computes in bfloat16, its states are what they are; the head rounds nothing more."""
    tokens, lengths = pad(ROWS[:1] + ROWS[2:], 0)
    with torch.autocast("cpu", torch.bfloat16):
        scores = outcome(tokens, lengths)[0]
        states = outcome.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    exact = states.double() @ outcome.head.weight[0].double()
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16()).float().mean() > 0.5, "more than bfloat16 can say"
    assert (scores - exact).abs().max() < 1e-6 * max(1.0, exact.abs().max().item())
    assert (exact.bfloat16() - exact).abs().max() > 1e-6 * max(1.0, exact.abs().max().item())


@torch.no_grad()
def test_step_scores_are_the_logits_of_transformers(process: RewardModel, process_model: Path) -> None:
    theirs = AutoModelForTokenClassification.from_pretrained(process_model).eval()
    scores = process(*pad(ROWS, 0))
    for row, ours in zip(ROWS, scores, strict=True):
        assert torch.allclose(ours[: len(row)], theirs(torch.tensor([row])).logits[0, :, 0], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("filler", [0, 2, 77])
def test_padding_counts_for_nothing_whatever_fills_it(outcome: RewardModel, filler: int) -> None:
    together = outcome(*pad(ROWS, filler))
    for row, scores in zip(ROWS, together, strict=True):
        alone = outcome(*pad([row], filler))[0]
        assert torch.allclose(scores[: len(row)], alone, atol=1e-5)
        assert (scores[len(row) :] == 0).all()


def test_the_last_token_of_a_step_by_hand() -> None:
    encoded = EncodedResponse(token_ids=[40, 2, 7, 9], spans=[(-3, -1), (-1, 0), (0, 1), (1, 3)])
    assert [encoded.last_token(end) for end in (1, 2, 3)] == [2, 3, 3]
    closed = EncodedResponse(token_ids=[0, 40, 7, 3, 0], spans=[(0, 0), (-1, 0), (0, 2), (2, 9), (0, 0)])
    assert closed.last_token(2) == 2, "neither the template's closing token nor one that has no text"


def test_the_response_stands_where_the_template_puts_the_assistant(process: RewardModel) -> None:
    encoded = process.encode("Why?", " so\n")
    assert process.encode.tokenizer.decode(encoded.token_ids) == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n so\n<|im_end|>\n"
    )
    inside = [i for i, (a, b) in enumerate(encoded.spans) if 0 <= a < b <= 4]
    assert process.encode.tokenizer.decode([encoded.token_ids[i] for i in inside]) == " so\n"


def test_a_template_that_trims_does_not_move_the_offsets(process_model: Path) -> None:
    model = RewardModel.load(str(process_model), "process", "float32")
    model.encode.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}"
    encoded = model.encode("q", "  so\n")
    assert model.encode.tokenizer.decode(encoded.token_ids) == "[q][  so\n]"
    assert encoded.spans[-1] == (5, 6)


def test_without_a_template_the_response_follows_on_a_new_line(process_model: Path) -> None:
    model = RewardModel.load(str(process_model), "process", "float32")
    model.encode.tokenizer.chat_template = None
    encoded = model.encode("q", "so")
    assert model.encode.tokenizer.decode(encoded.token_ids) == "q\nso"
    assert encoded.spans[0] == (-2, -1)
    assert encoded.spans[-1][1] == 2


TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
]


def test_a_conversation_is_read_whole_with_and_without_a_template(process_model: Path) -> None:
    model = RewardModel.load(str(process_model), "process", "float32")
    tokenizer = model.encode.tokenizer
    assert tokenizer.decode(model.encode(TURNS, "so").token_ids) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n"
    )
    assert model.encode(TURNS[1:2], "so") == model.encode("q", "so")
    tokenizer.chat_template = None
    text = "System: s\n\nUser: q\n\nAssistant: a\n\nUser: r\nso"
    assert tokenizer.decode(model.encode(TURNS, "so").token_ids) == text


def test_a_conversation_that_the_template_refuses_is_named_by_its_roles(process_model: Path) -> None:
    model = RewardModel.load(str(process_model), "process", "float32")
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    model.encode.tokenizer.chat_template = refusal
    with pytest.raises(
        ValueError, match=r"refuses messages of system, user, .* \(no system\): give a reward"
    ):
        model.encode(TURNS, "so")


@few
@given(prompt=TEXTS, response=TEXTS)
def test_every_character_of_a_response_has_a_last_token(
    process: RewardModel, prompt: str, response: str
) -> None:
    encoded = process.encode(prompt, response)
    for end in range(1, len(response) + 1):
        last = encoded.last_token(end)
        begin, stop = encoded.spans[last]
        assert begin < end <= stop
        assert all(first >= end for first, after in encoded.spans[last + 1 :] if first < after)


def test_only_a_head_that_was_trained_for_it_is_not_new(
    tiny_model: Path, outcome_model: Path, process_model: Path
) -> None:
    new = {
        (path.name, kind): RewardModel.load(str(path), kind, "float32").new_head
        for path in (tiny_model, outcome_model, process_model)
        for kind in ("outcome", "process")
    }
    trained = [key for key, is_new in new.items() if not is_new]
    assert trained == [(outcome_model.name, "outcome"), (process_model.name, "process")]


def test_two_labels_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a classifier with 2 labels: give a reward model with one"):
        RewardModel.load(str(tmp_path), "outcome", "float32")


def test_a_head_that_is_not_linear_on_each_state_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=1, num_labels=1)
    GPT2ForTokenClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GPT2ForTokenClassification, which has no linear head `score`"):
        RewardModel.load(str(tmp_path), "process", "float32")


def test_a_folder_that_is_incomplete_is_refused_in_one_sentence(outcome_model: Path, tmp_path: Path) -> None:
    shutil.copytree(outcome_model, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"half could not be loaded .*: give a complete"):
        RewardModel.load(str(tmp_path / "half"), "outcome", "float32")


def test_dropout_is_off_even_in_training(outcome_model: Path, tmp_path: Path) -> None:
    shutil.copytree(outcome_model, tmp_path / "dropping")
    config = tmp_path / "dropping" / "config.json"
    config.write_text(config.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.9'))
    assert "0.9" in config.read_text()
    model = RewardModel.load(str(tmp_path / "dropping"), "outcome", "float32").train()
    assert torch.equal(model(*pad(ROWS, 0)), model(*pad(ROWS, 0)))
