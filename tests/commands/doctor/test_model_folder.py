"""Model folders with one thing wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_pl.commands.doctor.findings import Finding
from grpo_pl.commands.doctor.model import check_model, names, vocabulary
from grpo_pl.prompts.chat import ChatFormat

Changed = Callable[..., Path]


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Changed:
    """A copy of the tiny model with entries of one of its JSON files changed; None takes one out."""

    def copy(file: str, **entries: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        settings = json.loads((folder / file).read_text()) | entries
        kept = {key: value for key, value in settings.items() if value is not None}
        (folder / file).write_text(json.dumps(kept))
        return folder

    return copy


def found_in(folder: Path, format: ChatFormat | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_model(str(folder), format or ChatFormat())}


def test_nothing_is_wrong_with_the_tiny_model_in_a_chat_or_as_plain_text(tiny_model: Path) -> None:
    for format in (ChatFormat(), ChatFormat(use_chat_template=False)):
        found = found_in(tiny_model, format)
        assert {finding.verdict for finding in found.values()} == {"ok"}
    assert "tied embeddings" in found["model"].found


def test_no_model_at_all_is_a_problem() -> None:
    assert found_in(Path("/no/such/model"))["model"].verdict == "problem"


def test_a_missing_shard_is_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    finding = found_in(folder)["weights"]
    assert finding.verdict == "problem"
    assert finding.found.endswith("lacks model-2.safetensors")


def test_an_answer_that_ends_in_another_token_than_the_engine_stops_at(changed: Changed) -> None:
    finding = found_in(changed("generation_config.json", eos_token_id=0))["end of response"]
    assert finding.verdict == "problem"
    assert (
        finding.found
        == "the chat template ends an answer with <|im_end|> (2), and only <|endoftext|> (0) ends it"
    )
    assert '"eos_token_id": [0, 2] in generation_config.json' in finding.fix


def test_two_bos_tokens_are_a_problem(changed: Changed) -> None:
    folder = changed("tokenizer_config.json", bos_token="<|endoftext|>")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + template)
    assert "with BOS" in found_in(folder)["template"].found
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ bos_token }}" + template)
    assert found_in(folder)["template"].found == "a prompt begins with two BOS tokens"


def test_the_models_own_sampling_settings_are_said_and_not_applied(changed: Changed) -> None:
    finding = found_in(changed("generation_config.json", do_sample=True, top_p=0.8, repetition_penalty=1.05))
    assert finding["generation_config"].verdict == "ok"
    assert finding["generation_config"].found.startswith("top_p=0.8, repetition_penalty=1.05: not applied")


def test_more_tokens_than_embeddings_are_a_problem() -> None:
    assert vocabulary(320, 320).verdict == "ok"
    assert vocabulary(321, 320).verdict == "problem"


def test_an_engine_of_another_model_is_a_warning() -> None:
    assert names({"model.policy.pretrained": "a", "data.engine.pretrained": "a"}).verdict == "ok"
    assert names({"model.policy.pretrained": "a", "data.engine.pretrained": ""}).verdict == "ok"
    assert names({"model.policy.pretrained": "a", "data.engine.pretrained": "b"}).verdict == "warning"
