"""Adapters: what they compute, what reaches the engine, and the reference that is the policy without them."""

import logging
from pathlib import Path

import pytest
import torch
from helpers.adapters import with_random_adapters
from helpers.commands import Fit, Refused
from helpers.run_results import NO_VALIDATION, column, saved, untimed
from helpers.tiny_models import saved as store
from helpers.tiny_models import tiny
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from grpo_pl.commands.export import export
from grpo_pl.models import AdapterOff, CausalLM, LanguageModel, LoRA
from grpo_pl.models.adapter_targets import find_targets
from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.loading import load_language_model, load_tokenizer
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt

ADAPTED = ("--model.policy", "LoRA", "--model.policy.r", "4", "--model.reference", "AdapterOff")


def batch() -> tuple[Tensor, Tensor]:
    """Two responses to the same prompt, and one to another."""
    tokens = torch.randint(3, 300, (3, 10), generator=torch.Generator().manual_seed(0))
    tokens[1, :4] = tokens[0, :4]
    return tokens, torch.arange(10).expand(3, 10) >= 4


def logprobs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(*batch(), 0.9).logprobs


def loaded(folder: Path, weights: dict[str, Tensor]) -> LanguageModel:
    """The plain model with the given weights."""
    plain = CausalLM(str(folder)).build()
    assert not plain.language_model.load_state_dict(weights, strict=False).unexpected_keys
    return plain


def test_a_new_adapter_changes_nothing_and_learns_alone(tiny_model: Path) -> None:
    policy, plain = LoRA(str(tiny_model), r=3).build(), CausalLM(str(tiny_model)).build()
    assert torch.equal(logprobs(policy), logprobs(plain))
    linear = [m for m in plain.language_model.base_model.modules() if isinstance(m, nn.Linear)]
    trained = {name: p.numel() for name, p in policy.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == sum(3 * (m.in_features + m.out_features) for m in linear)
    assert all("lora_" in name for name in trained)
    policy(*batch(), 1.0).logprobs.sum().backward()
    assert {name for name, p in policy.named_parameters() if p.grad is not None} == trained.keys()


@pytest.mark.parametrize("r", [1, 4])
def test_merged_weights_are_w_plus_alpha_over_r_times_b_a(tiny_model: Path, r: int) -> None:
    policy = with_random_adapters(
        LoRA(str(tiny_model), r=r, alpha=6, target_modules=["q_proj", "down_proj"]).build()
    )
    model, plain = policy.language_model, load_language_model(str(tiny_model), "float32")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = dict(full_weights(model))
    assert merged.keys() == dict(plain.named_parameters()).keys()
    changed = {name for name, w in plain.named_parameters() if not torch.equal(w, merged[name])}
    assert changed == {n for n in merged if n.endswith(("q_proj.weight", "down_proj.weight"))}
    for name in changed:
        layer = model.get_submodule(name.removesuffix(".weight"))
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert torch.allclose(merged[name], plain.get_parameter(name) + 6 / r * b @ a, atol=1e-6), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.allclose(logprobs(loaded(tiny_model, merged)), logprobs(policy), atol=1e-5)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_layers_that_keep_their_weight_transposed_merge_too(tmp_path: Path) -> None:
    GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    ).save_pretrained(tmp_path)
    policy = with_random_adapters(LoRA(str(tmp_path), r=2).build())
    assert (logprobs(policy) - logprobs(CausalLM(str(tmp_path)).build())).abs().max() > 1e-2
    merged = loaded(tmp_path, dict(full_weights(policy.language_model)))
    assert torch.allclose(logprobs(merged), logprobs(policy), atol=1e-5)


def test_adapters_of_half_precision_weights_are_float32(tiny_model: Path) -> None:
    policy = LoRA(str(tiny_model), dtype="bfloat16").build()
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in policy.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert {weight.dtype for _, weight in full_weights(with_random_adapters(policy).language_model)} == {
        torch.bfloat16
    }
    assert logprobs(policy).isfinite().all()


def test_trees_and_checkpointing_change_neither_logprobs_nor_gradients(tiny_model: Path) -> None:
    results = []
    for arguments in ({"attention": "sdpa"}, {"attention": "tree"}, {"gradient_checkpointing": True}):
        policy = with_random_adapters(LoRA(str(tiny_model), r=2, **arguments).build())
        said = policy(*batch(), 1.0).logprobs
        (said * torch.linspace(-1, 1, said.numel()).view_as(said)).sum().backward()
        results.append((said, [p.grad for p in policy.parameters() if p.requires_grad]))
    (plain, gradients), *others = results
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    for said, theirs in others:
        assert torch.allclose(said, plain, atol=1e-5)
        for a, b in zip(gradients, theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))


def test_the_reference_is_the_policy_without_its_adapters(tiny_model: Path) -> None:
    policy = with_random_adapters(LoRA(str(tiny_model), r=2).build())
    reference = AdapterOff().build(policy)
    reference.requires_grad_(False).eval()
    said = logprobs(policy)
    assert torch.equal(logprobs(reference), logprobs(CausalLM(str(tiny_model)).build()))
    assert (logprobs(reference) - said).abs().max() > 1e-2
    assert torch.equal(logprobs(policy), said), "the adapters are back"
    assert sum(parameter.numel() for parameter in reference.parameters()) == 0
    assert {"lora_" in name for name, p in policy.named_parameters() if p.requires_grad} == {True}
    assert policy.training


def test_a_reference_without_adapters_has_no_gradient(tiny_model: Path) -> None:
    """Checkpointed layers are computed again in the backward, where the adapters would be on."""
    policy = LoRA(str(tiny_model), gradient_checkpointing=True).build()
    assert not AdapterOff().build(policy)(*batch(), 1.0).logprobs.requires_grad


def test_only_a_policy_with_adapters_can_do_without_them(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="needs a policy with adapters"):
        AdapterOff().build(CausalLM(str(tiny_model)).build())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"r": 0}, "r=0: expected a rank of 1 or more"),
        ({"alpha": 0}, "alpha=0: expected more than 0"),
        ({"dropout": 0.1}, "dropout=0.1 .*set it to 0"),
        ({"target_modules": []}, r"^target_modules=\[\] names nothing to adapt"),
        ({"target_modules": ""}, "^target_modules= names nothing to adapt"),
        ({"target_modules": ["nothing"]}, "not found in the base model.*or say all-linear"),
        ({"target_modules": ["norm"]}, "not supported.*or say all-linear"),
        ({"target_modules": ["lm_head"]}, "takes in the embedding or the LM head"),
        ({"target_modules": ["embed_tokens"]}, "takes in the embedding or the LM head"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_an_adapter_that_cannot_be_is_refused(tiny_model: Path, arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LoRA(str(tiny_model), **arguments).build()


@pytest.mark.parametrize("kind", ["zamba", "zamba2"])
def test_all_linear_leaves_out_what_several_layers_share(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "grpo_pl")
    folder = Path(store(tiny(kind, vocab_size=320), tmp_path))
    policy = with_random_adapters(LoRA(str(folder), r=2).build())
    said = logprobs(policy)
    assert (said - logprobs(CausalLM(str(folder)).build())).abs().max() > 1e-2
    assert torch.allclose(
        logprobs(loaded(folder, dict(full_weights(policy.language_model)))), said, atol=1e-4
    )
    *_, told = (message for message in caplog.messages if " adapts " in message)
    adapted, shared = told.split("; not ")[0], told.partition("(several layers share one weight in ")[2]
    assert {"q_proj", "k_proj", "v_proj", "o_proj"} <= set(shared.partition(")")[0].split(", "))
    assert "in_proj" in adapted
    assert "q_proj" not in adapted


@pytest.mark.parametrize("targets", [["in_proj", "q_proj"], r".*layers\.3\..*q_proj"])
def test_a_shared_weight_that_is_named_is_refused(targets: str | list[str], tmp_path: Path) -> None:
    folder = store(tiny("zamba", vocab_size=320), tmp_path)
    sentence = (
        r"target_modules=.*layers\.\d\.\S*q_proj.weight is the same parameter as \S*layers\.\d\.\S*q_proj"
    )
    with pytest.raises(ConfigError, match=sentence):
        LoRA(folder, target_modules=targets).build()


def test_a_layer_that_two_blocks_hold_is_shared_too(tiny_untied_model: Path) -> None:
    model = load_language_model(str(tiny_untied_model), "float32")
    first, second, *_ = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    second.mlp.down_proj.weight = first.mlp.down_proj.weight
    found = find_targets(model, "all-linear")
    assert found.shared_kinds() == ["up_proj", "down_proj"]
    assert set(found.kinds()) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"}
    with pytest.raises(
        ConfigError, match=r"layers\.0\.mlp\.up_proj\.weight is the same parameter as .*layers\.1"
    ):
        find_targets(model, ["up_proj"])


def test_a_policy_with_adapters_takes_what_one_without_takes(fit: Fit, refused: Refused) -> None:
    said = refused(fit, *ADAPTED, "--model.policy.chunk_token", "64")
    assert "Did you mean model.policy.chunk_tokens?" in said


# ------------------------------------------------------------------------------------------------ the engines


def engine_on(name: str, folder: Path) -> RolloutEngine:
    engine = (
        InProcessEngine(str(folder)) if name == "InProcessEngine" else VLLMEngine(str(folder), "float32", 0.1)
    )
    engine.start(max_sequence_tokens=96, max_sequences=16, device=torch.device("cpu"))
    return engine


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("InProcessEngine", "tied"),
        ("InProcessEngine", "untied"),
        pytest.param("VLLMEngine", "tied", marks=pytest.mark.vllm),
        pytest.param("VLLMEngine", "untied", marks=[pytest.mark.vllm, pytest.mark.slow]),
    ],
)
def test_the_engine_samples_from_the_merged_weights(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("tiny_model" if kind == "tied" else "tiny_untied_model")
    policy = with_random_adapters(LoRA(str(folder), r=4).build())
    ids = load_tokenizer(str(folder))("Say a number.")["input_ids"]
    engine = engine_on(name, folder)
    try:
        engine.load_weights(full_weights(policy.language_model), version=1)
        prompt = Prompt(token_ids=list(ids), text="Say a number.", answer="", seed=3)
        rollout = engine.generate([prompt], 8, SamplingConfig(max_tokens=24, temperature=0.8))
    finally:
        engine.shutdown()

    def gap(model: nn.Module) -> float:
        with torch.no_grad():
            said = model(rollout.token_ids, rollout.loss_mask, rollout.temperature).logprobs
        return float((said - rollout.sampling_logprobs)[rollout.loss_mask].abs().mean())

    assert gap(policy) <= 1e-4
    assert gap(CausalLM(str(folder)).build()) > 1e-2, "the adapters are too small to show a missing merge"


# ------------------------------------------------------------------------------------------------- whole runs


class Unstartable(InProcessEngine):  # type: ignore[misc]
    """Shows that a run got as far as its engine."""

    def start(self, **_: object) -> None:
        raise AssertionError("the engine starts")


@pytest.fixture(scope="module")
def run(fit: Fit) -> Path:
    return fit(*ADAPTED, "--model.optimizer.lr", "0.01", *NO_VALIDATION)


def state(folder: Path, file: str = "last.ckpt") -> dict[str, Tensor]:
    return saved(folder, file)["state_dict"]


def test_an_adapted_policy_learns_in_step_with_its_engine(run: Path) -> None:
    assert max(column(run, "sync/logprob_mismatch")) < 1e-5
    assert column(run, "train/kl")[-1] > 1e-3, "the adapters have moved too little to show a stale engine"
    assert all("lora_" in name for name in state(run)), "a checkpoint holds the adapters alone"


def test_the_policy_without_adapters_is_as_good_a_reference_as_a_copy(run: Path, fit: Fit) -> None:
    copy = fit(*ADAPTED[:-1], "CausalLM", "--model.optimizer.lr", "0.01", *NO_VALIDATION)
    assert column(run, "train/kl") == pytest.approx(column(copy, "train/kl"), rel=1e-4)
    assert column(run, "rollout/reward") == column(copy, "rollout/reward")


def test_a_resumed_run_ends_like_one_never_stopped(run: Path, fit: Fit) -> None:
    arguments = (*ADAPTED, "--model.optimizer.lr", "0.01", *NO_VALIDATION)
    part = fit("--trainer.max_epochs", "2", *arguments)
    fit("--trainer.max_epochs", "3", "--ckpt_path", "last", *arguments, root=part)
    assert untimed(run) == untimed(part)
    assert all(torch.equal(tensor, state(part)[name]) for name, tensor in state(run).items())


def test_adapters_that_would_mean_something_else_are_refused_before_the_engine(
    run: Path, fit: Fit, refused: Refused, tmp_path: Path
) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    go_on = (*ADAPTED, *NO_VALIDATION, "--trainer.max_epochs", 4, "--data.engine", f"{__name__}.Unstartable")
    said = refused(fit, *go_on, "--ckpt_path", checkpoint, "--model.policy.alpha", 64)
    assert "model.policy.alpha=64: the weights in ckpt_path were trained with 32" in said
    old = saved(run)
    assert old.pop("settings_of_weights")["policy"] == {"alpha": 32}
    torch.save(old, tmp_path / "old.ckpt")
    for path, alpha in ((checkpoint, 32), (tmp_path / "old.ckpt", 64)):
        with pytest.raises(AssertionError, match="the engine starts"):
            fit(*go_on, "--ckpt_path", path, "--model.policy.alpha", alpha)


def test_adapters_of_another_rank_or_of_other_layers_are_refused(
    run: Path, fit: Fit, refused: Refused
) -> None:
    go_on = (*ADAPTED, *NO_VALIDATION, "--trainer.max_epochs", 4)
    go_on += ("--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert "lora_A.default.weight has the shape [4," in refused(fit, *go_on, "--model.policy.r", 8)
    assert "also has policy." in refused(fit, *go_on, "--model.policy.target_modules", "[q_proj]")


def test_two_ranks_toggle_adapters_and_warm_a_critic_up(fit: Fit) -> None:
    """One joint backward, whose gradients every rank expects: of adapters switched off between, too."""
    trunk = ("--model.critic", "TrunkValueHead", "--model.critic.detach", "false", "--model.advantage", "GAE")
    every = ("--trainer.max_epochs", "2", "--checkpoint.save_top_k", "-1", "--model.critic_warmup", "1")
    folder = fit("--trainer.strategy", "ddp", *ADAPTED, *trunk, *every, *NO_VALIDATION, ranks=2)
    early, late = sorted((folder / "checkpoints").glob("iteration-*.ckpt"))
    states = [state(folder, path.name) for path in (early, late)]
    warm, done = ({n: t.abs().max() for n, t in one.items() if "lora_B" in n} for one in states)
    assert warm.keys()
    assert max(warm.values()) == 0
    assert min(done.values()) > 0
    assert states[0]["critic.head.weight"].abs().max() > 0


def test_an_exported_run_is_the_adapted_policy_merged(run: Path, tmp_path: Path, tiny_model: Path) -> None:
    folder = export(run / "checkpoints" / "last.ckpt", tmp_path / "model")
    policy = LoRA(str(tiny_model), r=4).build()
    learned = {name.removeprefix("policy."): tensor for name, tensor in state(run).items()}
    assert not policy.load_state_dict(learned, strict=False).unexpected_keys
    exported = CausalLM(str(folder)).build()
    assert torch.allclose(logprobs(exported), logprobs(policy), atol=1e-5)
    assert (logprobs(exported) - logprobs(CausalLM(str(tiny_model)).build())).abs().max() > 1e-3


def test_adapters_away_from_their_run_cannot_be_merged(run: Path, tmp_path: Path, tiny_model: Path) -> None:
    alone = tmp_path / "a" / "b" / "alone.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(ValueError, match="the adapters' scale is known there"):
        export(alone, tmp_path / "model", str(tiny_model))
