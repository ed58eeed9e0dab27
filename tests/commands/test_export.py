import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import command

from grpo_pl.__main__ import main
from grpo_pl.commands.export import export, model_weights
from grpo_pl.commands.tiny_model import make_tiny_model
from grpo_pl.models import CausalLM
from grpo_pl.models.loading import load_language_model, load_tokenizer
from grpo_pl.prompts.chat import ChatFormat
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.types import Prompt

SHORT = ("--trainer.max_epochs", 1, "--data.val", "null", "--samples.every", 0)


@pytest.fixture(scope="module")
def run(fit):
    return fit(*SHORT)


@pytest.fixture(scope="module")
def untied_run(fit, tiny_untied_model):
    return fit(*SHORT, pretrained=tiny_untied_model)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run / "checkpoints" / "last.ckpt", tmp_path_factory.mktemp("export") / "model")


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    return model_weights(run / "checkpoints" / "last.ckpt")


def assert_exported(run: Path, folder: Path) -> None:
    trained = trained_weights(run)
    loaded = load_language_model(str(folder), "float32").state_dict()
    assert loaded.keys() == trained.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, trained[name]), name


def test_every_exported_parameter_is_the_checkpoints(run, exported):
    assert_exported(run, exported)


def test_an_untied_head_is_exported_too(untied_run, tmp_path):
    folder = export(untied_run / "checkpoints" / "last.ckpt", tmp_path / "model")
    assert_exported(untied_run, folder)
    weights = load_language_model(str(folder), "float32").state_dict()
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_tied_weights_are_stored_once(exported):
    from safetensors import safe_open

    with safe_open(exported / "model.safetensors", "pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 - it is no dict
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_exported_logprobs_are_the_trained_policys_and_not_the_base_models(run, exported, tiny_model):
    torch.manual_seed(0)
    token_ids = torch.randint(3, 320, (4, 24))
    mask = torch.zeros_like(token_ids, dtype=torch.bool)
    mask[:, 8:] = True
    policy = CausalLM(str(tiny_model)).build()
    policy.language_model.load_state_dict(trained_weights(run))

    def logprobs(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(token_ids, mask, 1.0).logprobs

    trained, base = logprobs(policy), logprobs(CausalLM(str(tiny_model)).build())
    ours = logprobs(CausalLM(str(exported)).build())
    assert (ours - trained).abs().max() <= 1e-6
    assert (ours - base).abs().max() > 1e-3


def test_tokenizer_chat_template_and_generation_settings_come_along(exported, tiny_model):
    ours, base = load_tokenizer(str(exported)), load_tokenizer(str(tiny_model))
    assert ours.chat_template == base.chat_template
    question = "What is 2 + 3?"
    assert ChatFormat().encode(question, ours) == ChatFormat().encode(question, base)
    for name in ("config.json", "generation_config.json"):
        assert (exported / name).read_text() == (tiny_model / name).read_text()


UNSAVEABLE = {"temperature": 0.6, "top_p": 0.9, "early_stopping": True}
"""transformers loads these settings and refuses to save them, without do_sample and without beams."""


def with_settings(model: Path, folder: Path, **settings: object) -> Path:
    """The same model with other generation settings."""
    shutil.copytree(model, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_settings_that_transformers_would_not_save_are_mended_with_a_warning_when_the_run_begins(
    fit, tmp_path, tiny_model, capsys
):
    base = with_settings(tiny_model, tmp_path / "base", **UNSAVEABLE)
    run = fit(*SHORT, pretrained=base)
    begun, _, _ = capsys.readouterr().out.partition("iteration")
    main(["export", str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "model")])
    warning = (
        f"! pretrained={base}: transformers does not save its generation_config.json as it is; the exported "
        "one has do_sample=true, which temperature=0.6 and top_p=0.9 need, no early_stopping=True, which has "
        "no use.\n"
    )
    assert begun.count(warning) == 1
    assert capsys.readouterr().out == f"{warning}{tmp_path / 'model'}\n"
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (settings["do_sample"], settings["temperature"], settings["top_p"]) == (True, 0.6, 0.9)
    assert "early_stopping" not in settings
    assert_exported(run, tmp_path / "model")


def test_generation_settings_inside_config_json_do_not_stop_the_export(run, tmp_path, tiny_model):
    base = with_settings(tiny_model, tmp_path / "base")
    (base / "generation_config.json").unlink()
    path = base / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"temperature": 0.6, "num_return_sequences": 3})
    )
    assert_exported(run, export(run / "checkpoints" / "last.ckpt", tmp_path / "model", str(base)))


def test_settings_that_transformers_cannot_load_are_refused_before_the_run(
    tmp_path, tiny_model, fit, refused
):
    base = with_settings(tiny_model, tmp_path / "base", max_new_tokens=0)
    sentence = refused(fit, *SHORT, pretrained=base)
    assert "cannot use its generation_config.json (`max_new_tokens` must be greater than 0" in sentence
    assert sentence.endswith("correct it there")


def test_the_command_prints_the_folder_and_leaves_nothing_beside_it(run, tmp_path, capsys):
    out = tmp_path / "new" / "model"
    main(["export", str(run / "checkpoints" / "last.ckpt"), str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    assert list(out.parent.iterdir()) == [out]


def test_a_checkpoint_away_from_its_run_needs_the_base_model_by_name(run, tmp_path, tiny_model):
    alone = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    with pytest.raises(ValueError, match="say --pretrained"):
        export(Path(alone), tmp_path / "model")
    assert_exported(run, export(Path(alone), tmp_path / "model", str(tiny_model)))


@pytest.fixture
def mistakes(run, untied_run, tmp_path, tiny_model):
    """A mistake -> the arguments, and what the sentence has to name."""
    good, new = run / "checkpoints" / "last.ckpt", tmp_path / "model"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "torn.ckpt").write_bytes(good.read_bytes()[:9999])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "meta.pt").write_bytes(b"")
    torch.save(Path("/"), tmp_path / "code.ckpt")
    torch.save({"state_dict": {"critic.head.weight": torch.zeros(1)}}, tmp_path / "critic.ckpt")
    other = make_tiny_model(tmp_path / "other", vocab_size=321)
    torch.save({"state_dict": {"policy.language_model.x": torch.zeros(1)}}, tmp_path / "keys.ckpt")
    return {
        "missing file": ((tmp_path / "no.ckpt", new), "no.ckpt is not a file"),
        "not a checkpoint": (
            (tmp_path / "text.ckpt", new),
            "run (it is not a file of torch.save): give a",
        ),
        "torn": ((tmp_path / "torn.ckpt", new), "torn.ckpt is not a readable checkpoint of a run ("),
        "code": ((tmp_path / "code.ckpt", new), "(it holds more than data: "),
        "damaged shards": (
            (tmp_path / "shards", new),
            "shards is not a readable checkpoint of",
        ),
        "no policy": ((tmp_path / "critic.ckpt", new), "critic.ckpt holds no policy"),
        "not empty": ((good, tmp_path / "full"), "full exists and is not empty"),
        "a file": ((good, tmp_path / "text.ckpt"), "text.ckpt exists and is not empty"),
        "shapes": ((good, new, "--pretrained", other), "is (320, 64), expected (321, 64)"),
        "keys": ((tmp_path / "keys.ckpt", new, "--pretrained", tiny_model), "is nothing, expected (320, 64)"),
        "tied": (
            (untied_run / "checkpoints" / "last.ckpt", new, "--pretrained", tiny_model),
            "ties lm_head.weight",
        ),
        "no model": ((good, new, "--pretrained", tmp_path / "full"), "without config.json"),
    }


@pytest.mark.parametrize(
    "mistake",
    [
        *(
            "missing file",
            "not a checkpoint",
            "torn",
            "code",
            "damaged shards",
            "no policy",
            "not empty",
            "a file",
            "shapes",
            "keys",
            "tied",
        ),
        "no model",
    ],
)
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(mistake, mistakes, tmp_path, refused):
    arguments, named = mistakes[mistake]
    before = sorted(path.name for path in tmp_path.iterdir())
    answer = refused(command, "export", *arguments)
    assert answer.startswith("grpo_pl: error: export: ")
    assert named in answer
    assert "ckpt_path" not in answer
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


@pytest.mark.vllm
def test_vllm_loads_the_exported_folder_and_agrees_with_transformers(exported):
    from grpo_pl.rollout.vllm import VLLMEngine

    tokenizer = load_tokenizer(str(exported))
    questions = [f"What is {a} + {a + 1}?" for a in range(4)]
    prompts = [Prompt(token_ids=ChatFormat().encode(q, tokenizer), text=q, answer="") for q in questions]
    engine = VLLMEngine(str(exported), dtype="float32", kv_cache_gib=0.1)
    engine.start(max_sequence_tokens=128, max_sequences=8, device=torch.device("cpu"))
    try:
        rollout = engine.generate(prompts, 2, SamplingConfig(max_tokens=16))
    finally:
        engine.shutdown()
    with torch.no_grad():
        policy = CausalLM(str(exported)).build()
        expected = policy(rollout.token_ids, rollout.loss_mask, rollout.temperature).logprobs
    assert (rollout.sampling_logprobs - expected)[rollout.loss_mask].abs().mean() <= 1e-4
