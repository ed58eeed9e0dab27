"""A reference or critic must read the policy's tokens as the policy does (M3)."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import Fit, OverARun, Refused

from grpo_pl.commands.tiny_model import make_tiny_model
from grpo_pl.models.vocabulary import check_same_vocabulary
from grpo_pl.system.refusal import ArgumentError

TOKENIZER = "tokenizer.json", "tokenizer_config.json"


def changed(
    model: Path, folder: Path, *, rows: int | None = None, swapped: bool = False, without: bool = False
) -> str:
    """A copy of a model's configuration and tokenizer: no weights, for none are read."""
    folder.mkdir(parents=True)
    for name in ("config.json", *([] if without else TOKENIZER)):
        shutil.copy(model / name, folder / name)
    if rows is not None:
        config = json.loads((folder / "config.json").read_text()) | {"vocab_size": rows}
        (folder / "config.json").write_text(json.dumps(config))
    if swapped:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(folder)


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 270 tokens: the first 300 of the tiny model's 290."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "fewer", vocab_size=270)


def test_a_permuted_vocabulary_is_refused_and_two_tokens_are_named(tiny_model: Path, tmp_path: Path) -> None:
    other = changed(tiny_model, tmp_path / "other", swapped=True)
    with pytest.raises(
        ArgumentError, match=r"2 of its 290 tokens differ, such as '[AB]', token \d+ of the policy"
    ):
        check_same_vocabulary(other, str(tiny_model))


def test_embeddings_may_be_padded_where_the_tokenizer_is_the_same(tiny_model: Path, tmp_path: Path) -> None:
    check_same_vocabulary(changed(tiny_model, tmp_path / "padded", rows=400), str(tiny_model))


def test_a_model_without_rows_for_all_tokens_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Of a policy with padded embeddings too: it could sample a token that the other has no row for."""
    padded = changed(tiny_model, tmp_path / "padded", rows=400)
    with pytest.raises(
        ArgumentError, match="a vocabulary of 320 tokens and the policy one of 400: give a model"
    ):
        check_same_vocabulary(str(tiny_model), padded)


def test_a_model_may_know_further_tokens(tiny_model: Path, further: Path) -> None:
    check_same_vocabulary(str(tiny_model), str(further))
    with pytest.raises(ArgumentError, match="a vocabulary of 270 tokens and the policy one of 320"):
        check_same_vocabulary(str(further), str(tiny_model))


def test_without_a_tokenizer_the_number_of_rows_is_compared(tiny_model: Path, tmp_path: Path) -> None:
    check_same_vocabulary(changed(tiny_model, tmp_path / "bare", without=True), str(tiny_model))
    larger = changed(tiny_model, tmp_path / "larger", without=True, rows=400)
    with pytest.raises(
        ArgumentError, match="one of 320: give a model of the policy's family, with its tokenizer"
    ):
        check_same_vocabulary(larger, str(tiny_model))


@pytest.mark.parametrize(
    "arguments",
    [
        "--model.reference.pretrained {here}/other",
        "--model.critic ValueHead --model.advantage GAE --model.critic.pretrained {here}/other",
        "--model.kl null --model.advantage Distillation --model.reference.pretrained {here}/other",
        "--model.critic CriticEnsemble --model.advantage GAE --model.critic.critics "
        "'[{class_path: ValueHead}, {class_path: ValueHead, init_args: {pretrained: {here}/other}}]'",
    ],
    ids=["reference", "critic", "teacher", "one of several critics"],
)
def test_a_run_refuses_it_before_a_weight_is_read(
    over_a_run: OverARun, refused: Refused, tiny_model: Path, tmp_path: Path, arguments: str
) -> None:
    """Neither folder has weights here."""
    changed(tiny_model, tmp_path / "other", swapped=True)
    sentence = refused(over_a_run, arguments)
    key = "reference" if "reference" in arguments else "critic"
    key += ".critics.1" * ("CriticEnsemble" in arguments)
    assert f"model.{key}.pretrained={tmp_path}/other has another tokenizer than the policy" in sentence


def test_a_run_refuses_a_reference_of_400_tokens_beside_a_policy_of_320(
    over_a_run: OverARun, refused: Refused, tiny_model: Path, tmp_path: Path
) -> None:
    changed(tiny_model, tmp_path / "other", rows=400, without=True)
    sentence = refused(over_a_run, "--model.reference.pretrained {here}/other")
    assert "other has a vocabulary of 400 tokens and the policy one of 320" in sentence


def test_a_reference_that_nothing_compares_with_is_not_asked(
    fit: Fit, tiny_model: Path, tmp_path: Path
) -> None:
    other = changed(tiny_model, tmp_path / "other", swapped=True)
    ending = ("--model.kl", "null", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
    assert (fit("--model.reference.pretrained", other, *ending) / "metrics.csv").is_file()
