"""Model folders and checkpoints that are damaged, incomplete, or another's; rewards that give no number."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Fit, OverARun, Refused
from helpers.refusals import cases
from helpers.run_results import rows, saved

NO_VALIDATION = ("--data.val", "null", "--samples.every", 0, "--trainer.max_epochs", 1)
Edit = Callable[[Path], Any]


def written(name: str, content: str | bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def cut(name: str, length: int) -> Edit:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def without(*names: str) -> Edit:
    return lambda folder: [(folder / name).unlink() for name in names]


def edited(name: str, **values: Any) -> Edit:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return edit


# What is done to the tiny model's folder, and what the sentence has to say.
MODELS = {
    "no config": (without("config.json"), "is a folder without config.json: give"),
    "no weights": (
        without("model.safetensors"),
        "could not be loaded .weights: .*no file named model.safetensors",
    ),
    "empty weights": (written("model.safetensors", ""), "could not be loaded .weights: .*header too small"),
    "torn weights": (cut("model.safetensors", 9999), "could not be loaded .weights: .*"),
    "weights that were never fetched": (
        written(
            "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 380176\n"
        ),
        "could not be loaded .weights: ",
    ),
    "a config that is binary": (
        written("config.json", b"\xff\xfe"),
        r"could not be loaded .config.json: .*not a valid JSON",
    ),
    "a config that is a list": (
        written("config.json", "[]"),
        "could not be loaded .config.json: Unrecognized model",
    ),
    "an unknown architecture": (
        edited("config.json", model_type="frobnicate"),
        "config.json: .*`frobnicate`",
    ),
    "an encoder and a decoder": (
        edited("config.json", model_type="t5"),
        "weights: Unrecognized configuration class",
    ),
    "another architecture": (
        edited("config.json", model_type="bert"),
        "lacks .* of the weights that its config.json",
    ),
    "more layers than weights": (
        edited("config.json", num_hidden_layers=4),
        "lacks 18 of the weights .*layers.2",
    ),
    "less than no layers": (edited("config.json", num_hidden_layers=-2), "num_hidden_layers is -2"),
    "wider than its weights": (edited("config.json", hidden_size=128), "weights: they have other shapes"),
    "words for a width": (edited("config.json", hidden_size="wide"), "config.json: .*hidden_size"),
    "heads that do not divide": (
        edited("config.json", num_attention_heads=3, head_dim=None),
        "config.json: .*multiple",
    ),
    "an unknown activation": (
        edited("config.json", hidden_act="frob"),
        "could not be loaded .weights: 'frob'",
    ),
    "a short context": (
        edited("config.json", max_position_embeddings=8),
        "do not fit the model's context of 8",
    ),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "could not be loaded .tokenizer: "),
    "a binary tokenizer": (written("tokenizer.json", b"\xff\xfe"), "could not be loaded .tokenizer: 'utf-8'"),
    "a torn tokenizer": (
        cut("tokenizer.json", 3000),
        "could not be loaded .tokenizer: Expecting property name",
    ),
    "a torn tokenizer config": (
        written("tokenizer_config.json", "{"),
        "could not be loaded .tokenizer: Expecting",
    ),
    "a tokenizer with more tokens": (
        edited("config.json", vocab_size=100),
        "a prompt has the token .*model knows 100",
    ),
    "an end that is no token": (
        edited("generation_config.json", eos_token_id=99999),
        "eos_token_id 99999 of its",
    ),
    "an end in words": (edited("generation_config.json", eos_token_id="x"), "eos_token_id 'x' of its"),
    "a torn generation config": (written("generation_config.json", "{"), "loaded .generation_config.json: "),
    "no chat template": (without("chat_template.jinja"), "tokenizer has no chat template: set it to false"),
    "a torn chat template": (written("chat_template.jinja", "{% for"), "chat template refuses the messages"),
    "a binary chat template": (
        written("chat_template.jinja", b"\xff\xfe"),
        "could not be loaded .tokenizer: ",
    ),
    "code for its config": (
        edited("config.json", model_type="frob", auto_map={"AutoConfig": "mine.Config"}),
        "brings code of its own, which grpo_pl never runs",
    ),
    "code for its tokenizer": (
        edited(
            "tokenizer_config.json", tokenizer_class="Frob", auto_map={"AutoTokenizer": ["mine.Frob", None]}
        ),
        "brings code of its own, which grpo_pl never runs",
    ),
}


QUICK = (
    *(
        "no config",
        "torn weights",
        "a config that is binary",
        "an unknown architecture",
        "another architecture",
    ),
    *("more layers than weights", "wider than its weights", "no tokenizer", "a tokenizer with more tokens"),
    *("an end that is no token", "no chat template", "code for its config", "code for its tokenizer"),
)


@pytest.mark.parametrize("name", cases(MODELS, *QUICK))
def test_a_wrong_model_folder_is_refused(
    name: str, refused: Refused, over_a_run: OverARun, tiny_model: Path, tmp_path: Path
) -> None:
    edit, sentence = MODELS[name]
    shutil.copytree(tiny_model, tmp_path / "model")
    edit(tmp_path / "model")
    assert re.search(sentence, refused(over_a_run, "", pretrained=tmp_path / "model"))


def test_a_model_without_pad_and_without_end_runs_and_says_what_is_missing(
    fit: Fit, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Padding is our own; without a token that ends a response each is as long as it may be."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    edited("tokenizer_config.json", pad_token=None, eos_token=None)(folder)
    edited("config.json", pad_token_id=None, eos_token_id=None)(folder)
    written("generation_config.json", "{}")(folder)
    run = fit(*NO_VALIDATION, pretrained=folder)
    assert rows(run)[-1]["rollout/truncated"] == 1
    assert "names no token that ends a response" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def checkpoint(fit: Fit) -> dict[str, Any]:
    """Of a run of one iteration."""
    return saved(fit(*NO_VALIDATION))


# What is done to a checkpoint, the arguments beside --ckpt_path, and what the sentence has to say.
CHECKPOINTS = {
    "of another optimizer": (
        {},
        "--model.optimizer torch.optim.SGD",
        "the checkpoint's optimizer is no SGD over these parameters: set model.optimizer",
    ),
    "of full weights for LoRA": ({}, "--model.policy LoRA", "of another config: it lacks policy.*lora_A"),
    "of no critic": ({}, "--model.critic ValueHead --model.advantage GAE", "another config: it lacks critic"),
    "of a fixed KL": (
        {},
        "--model.kl.controller AdaptiveCoefficient --model.kl.controller.target 1",
        "lacks kl",
    ),
    "without optimizer": ({"optimizer_states": []}, "", "holds no state of the optimizer"),
    "without loops": ({"loops": None}, "", "not a readable checkpoint of a run .it has not all of loops"),
    "of an old Lightning": ({"pytorch-lightning_version": "1.4.2"}, "", "Lightning 1.4.2 wrote it"),
    "of no Lightning": ({"pytorch-lightning_version": "x"}, "", "Lightning x wrote it"),
}
FILES = {
    "torn": (None, "not a readable checkpoint of a run"),
    "empty": (b"", "not a readable checkpoint of a run .it is not a file of torch.save"),
    "binary": (bytes(range(256)), "not a readable checkpoint of a run .it is not a file of torch.save"),
    "a web page": (b"<html>404</html>", "not a readable checkpoint of a run .it is not a file of torch.save"),
}


@pytest.mark.parametrize("name", cases(CHECKPOINTS, "of another optimizer", "of no critic", "without loops"))
def test_a_checkpoint_of_another_run_is_refused(
    name: str,
    refused: Refused,
    over_a_run: OverARun,
    checkpoint: dict[str, Any],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    changes, arguments, sentence = CHECKPOINTS[name]
    content = {key: value for key, value in (checkpoint | changes).items() if value is not None}
    torch.save(content, tmp_path / "other.ckpt")
    words = f"--ckpt_path {{here}}/other.ckpt {arguments}"
    assert re.search(sentence, refused(over_a_run, words, pretrained=tiny_model))


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_model_is_refused(
    command: str,
    refused: Refused,
    over_a_run: OverARun,
    checkpoint: dict[str, Any],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    weights = {name: torch.zeros(2, 2) for name in checkpoint["state_dict"]}
    torch.save(checkpoint | {"state_dict": weights}, tmp_path / "other.ckpt")
    sentence = r"of another model: its policy.* has the shape \[2, 2\] instead of"
    answer = refused(over_a_run, "--ckpt_path {here}/other.ckpt", name=command, pretrained=tiny_model)
    assert re.search(sentence, answer)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_checkpoint_is_refused_before_a_model_is_loaded(
    name: str, refused: Refused, over_a_run: OverARun, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    content, sentence = FILES[name]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    whole = (tmp_path / "other.ckpt").read_bytes()
    (tmp_path / "other.ckpt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert re.search(sentence, refused(over_a_run, "--ckpt_path {here}/other.ckpt"))


NO_CHECKPOINT = "best", "hpc", "registry", "''", "s3://a/b", "{here}", "{here}/none.ckpt"


@pytest.mark.parametrize("words", cases(NO_CHECKPOINT, "best", "{here}"))
def test_what_names_no_checkpoint_is_refused_before_a_model_is_loaded(
    words: str, refused: Refused, over_a_run: OverARun
) -> None:
    expected = "ckpt_path=.*(there is no such file|is a folder without meta.pt)"
    assert re.search(expected, refused(over_a_run, f"--ckpt_path {words}"))


# ---------------------------------------------------------------------------------------------------- rewards


def gives_nan(**_: Any) -> float:
    return float("nan")


def exits(**_: Any) -> float:
    raise SystemExit(3)


def says_much(**_: Any) -> float:
    raise KeyError("first line\nsecond line\n" + "x" * 5000)


REWARDS = {
    gives_nan: "it gave the score nan",
    exits: "SystemExit: 3",
    says_much: r"KeyError: 'first line.{1,600}\.\.\.",
}


@pytest.mark.parametrize("function", REWARDS, ids=lambda function: function.__name__)
def test_a_reward_that_gives_no_number_stops_the_run_with_its_sample(
    function: Callable[..., Any], refused: Refused, over_a_run: OverARun, tiny_model: Path
) -> None:
    reward = {
        "mine": {"class_path": "Function", "init_args": {"function": f"{__name__}.{function.__name__}"}}
    }
    words = f"--data.val null --model.rewards '{json.dumps(reward)}'"
    text = refused(over_a_run, words, pretrained=tiny_model, started=True)
    cause = f"{'.*' if function is not says_much else ''}{REWARDS[function]}"
    assert re.search(f"Reward 'mine' failed with {cause}", text)
    assert "on_error: abstain would skip every one" in text
    assert len(text) < 1500
