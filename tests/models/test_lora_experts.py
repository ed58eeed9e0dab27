"""Adapters of mixtures of experts: what is adapted, what is merged, and what runs and checkpoints keep."""

import logging
from pathlib import Path

import pytest
import torch
from helpers.adapters import with_random_adapters
from helpers.commands import Fit, Refused, command
from helpers.mixtures import make_tiny
from helpers.run_results import NO_VALIDATION, column, saved, strategy, untimed
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from grpo_pl.commands.export import export
from grpo_pl.models import CausalLM, LanguageModel, LoRA
from grpo_pl.models.deferred import deferred_weights
from grpo_pl.models.full_weights import full_weights
from grpo_pl.system.refusal import ArgumentError, ConfigError
from grpo_pl.training.strategies import place

FUSED = "experts.gate_up_proj experts.down_proj"
# A type of transformers: the matrices that `all-linear` adapts as tensors of all experts, and what it leaves.
MIXTURES = {
    "afmoe": (FUSED, "gate"),
    "aria_text": (FUSED, "router"),
    "deepseek_v3": (FUSED, "gate"),
    "deepseek_v4": (f"self_attn.o_a_proj {FUSED}", "gate attn_hc.fn ffn_hc.fn hc_head.hc_fn"),
    "dots1": (FUSED, "gate"),
    "ernie4_5_moe": (FUSED, "gate"),
    "gpt_oss": (FUSED, "router"),
    "granitemoe": (FUSED, "router"),
    "granitemoehybrid": (FUSED, "router conv1d out_proj"),
    "hunyuan_v1_moe": (FUSED, "wg"),
    "jamba": (FUSED, "router conv1d dt_proj mamba.A_log"),
    "jetmoe": ("mlp.input_linear mlp.output_linear experts.input_linear experts.output_linear", "layer"),
    "lfm2_moe": (FUSED, "gate conv"),
    "longcat_flash": (FUSED, "classifier"),
    "minimax": (FUSED, "gate"),
    "mixtral": (FUSED, "gate"),
    "nemotron_h": ("experts.up_proj experts.down_proj", "gate conv1d out_proj"),
    "olmoe": (FUSED, "gate"),
    "phimoe": (FUSED, "router"),
    "qwen2_moe": (FUSED, "gate"),
    "qwen3_moe": (FUSED, "gate"),
    "qwen3_next": (FUSED, "gate conv1d"),
}
# Others with layers that are no plain ones.
OTHERS = {"falcon": ("", ""), "mamba": ("", "conv1d dt_proj out_proj x_proj mixer.A_log")}
ENDS = {"embed_tokens", "embeddings", "word_embeddings", "lm_head"}


def logits(policy: LanguageModel) -> Tensor:
    tokens = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.language_model.eval()(input_ids=tokens, use_cache=False).logits


def merged(policy: LanguageModel, folder: Path) -> LanguageModel:
    """The plain model with the weights that an engine gets."""
    plain = CausalLM(str(folder)).build()
    weights = dict(full_weights(policy.language_model))
    assert weights.keys() == {name for name, _ in plain.language_model.named_parameters()}
    plain.language_model.load_state_dict(plain.language_model.state_dict() | weights)
    return plain


def adapted(caplog: pytest.LogCaptureFixture) -> tuple[set[str], set[str]]:
    """The kinds that the log says are adapted, and those that are not."""
    *_, said = (message for message in caplog.messages if " adapts " in message)
    kinds, others = said.removesuffix(": target_modules names what is adapted").split("; not ")
    return set(kinds.partition(" adapts ")[2].split(", ")), set(others.split(", "))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MIXTURES | OTHERS)
def test_what_all_linear_trains_is_what_is_merged(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "grpo_pl")
    folder = make_tiny(kind, tmp_path)
    policy = with_random_adapters(LoRA(str(folder), r=2).build())
    said = logits(policy)
    assert (logits(merged(policy, folder)) - said).abs().max() < 2e-4
    assert (logits(CausalLM(str(folder)).build()) - said).abs().max() > 1
    tensors, left = map(str.split, (MIXTURES | OTHERS)[kind])
    kinds, others = adapted(caplog)
    assert {one for one in kinds if "." in one} == {one for one in tensors if "." in one}
    assert others - ENDS - {one for one in others if "bias" in one} == set(left)


@pytest.mark.parametrize(
    ("kind", "targets", "kinds"),
    [
        ("qwen3_moe", ["gate_up_proj"], "experts.gate_up_proj"),
        ("qwen3_moe", ["experts.down_proj", "gate"], "experts.down_proj mlp.gate"),
        ("qwen3_moe", r".*\.mlp\..*down_proj", "down_proj experts.down_proj"),
        ("deepseek_v3", ["gate_proj", "up_proj"], "gate_proj up_proj experts.gate_up_proj"),
        ("deepseek_v3", ["shared_experts.gate_proj"], "gate_proj"),
        ("mixtral", ["q_proj", "w1", "w3"], "q_proj experts.gate_up_proj"),
        ("gpt_oss", ["router", "gate_up_proj", "down_proj"], f"mlp.router {FUSED}"),
        ("phimoe", ["router"], "mlp.router"),
        ("gpt2", ["wpe", "c_attn"], "wpe c_attn"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_named_is_adapted_and_merged(
    kind: str, targets: str | list[str], kinds: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "grpo_pl")
    folder = make_tiny(kind, tmp_path)
    policy = with_random_adapters(LoRA(str(folder), r=2, target_modules=targets).build())
    assert adapted(caplog)[0] == set(kinds.split())
    said = logits(policy)
    assert (logits(merged(policy, folder)) - said).abs().max() < 2e-4
    assert (logits(CausalLM(str(folder)).build()) - said).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "targets", "sentence"),
    [
        (
            "qwen3_moe",
            ["q_proj", "gate_proj"],
            "names .*gate_proj without .*up_proj, and both are one weight",
        ),
        ("gpt_oss", ["q_proj", "gate_proj"], "gate_proj is not found in the base model"),
        ("qwen3_moe", ["experts"], "experts, a Qwen3MoeExperts, is not supported"),
        ("gpt_oss", ["gate_up_proj_bias"], "gate_up_proj_bias is not found"),
        ("mamba", ["dt_proj"], "dt_proj, a Linear, is not supported: the model reads its weight without"),
        ("qwen3_moe", "experts.(", "is no regular expression"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_targets_that_cannot_be_are_refused(
    kind: str, targets: str | list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=f"^target_modules.*{sentence}"):
        LoRA(str(make_tiny(kind, tmp_path)), target_modules=targets).build()


def test_each_expert_has_its_own_adapter(tmp_path: Path) -> None:
    """GPT-OSS keeps the inputs of a matrix before its outputs; the others the other way round."""
    for kind in ("gpt_oss", "olmoe"):
        folder = make_tiny(kind, tmp_path / kind)
        policy = with_random_adapters(
            LoRA(str(folder), r=3, alpha=6, target_modules=["down_proj"]).build()
        ).language_model
        name = "model.layers.1.mlp.experts"
        a, b = (getattr(policy.get_submodule(name), f"lora_{side}")["default"].weight for side in "AB")
        before = CausalLM(str(folder)).build().language_model.get_parameter(f"{name}.down_proj")
        after = dict(full_weights(policy))[f"{name}.down_proj"]
        for expert in range(4):
            product = 6 / 3 * b[:, expert::4] @ a[3 * expert : 3 * expert + 3]
            change = product.T if kind == "gpt_oss" else product
            assert torch.allclose(after[expert] - before[expert], change, atol=1e-5), (kind, expert)


# ------------------------------------------------------------------------------------------------- whole runs

ADAPTED = (
    *("--model.policy", "LoRA", "--model.policy.r", "4", "--model.reference", "AdapterOff"),
    *("--model.optimizer.lr", "0.01", *NO_VALIDATION),
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen3_moe", tmp_path_factory.mktemp("models") / "qwen3_moe")


@pytest.fixture(scope="module")
def run(fit: Fit, qwen: Path) -> Path:
    return fit(*ADAPTED, "--checkpoint.save_top_k", "-1", pretrained=qwen)


def expert_adapters(folder: Path, file: str = "last.ckpt") -> dict[str, Tensor]:
    return {name: t for name, t in saved(folder, file)["state_dict"].items() if ".experts." in name}


def exported_is_adapted(checkpoint: Path, pretrained: Path, out: Path) -> None:
    policy = LoRA(str(pretrained), r=4).build()
    learned = torch.load(checkpoint, weights_only=True)["state_dict"]
    learned = {name.removeprefix("policy."): tensor for name, tensor in learned.items()}
    policy.load_state_dict(policy.state_dict() | learned)
    exported = CausalLM(str(export(checkpoint, out))).build()
    assert (logits(exported) - logits(policy)).abs().max() < 2e-4
    before: nn.Module = CausalLM(str(pretrained)).build().language_model
    for name, tensor in exported.language_model.named_parameters():
        if ".experts." in name:
            assert not torch.equal(tensor, before.get_parameter(name)), name


def test_experts_learn_in_step_with_the_engine_and_are_exported(
    run: Path, qwen: Path, tmp_path: Path
) -> None:
    assert max(column(run, "sync/logprob_mismatch")) < 1e-5
    assert len(expert_adapters(run)) == 4, "A and B of two matrices, in the layer that has experts"
    exported_is_adapted(run / "checkpoints" / "last.ckpt", qwen, tmp_path / "model")


def test_a_resumed_run_has_every_adapter_to_the_bit(run: Path, fit: Fit, qwen: Path) -> None:
    part = fit("--trainer.max_epochs", "2", *ADAPTED, pretrained=qwen)
    fit("--trainer.max_epochs", "3", "--ckpt_path", "last", *ADAPTED, root=part, pretrained=qwen)
    assert untimed(run) == untimed(part)
    ours, theirs = (saved(folder)["state_dict"] for folder in (run, part))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_checkpoint_without_an_experts_adapter_is_refused(
    run: Path, qwen: Path, tmp_path: Path, refused: Refused
) -> None:
    copy = tmp_path / "run" / "checkpoints" / "last.ckpt"
    copy.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text((run / "config.yaml").read_text())
    content = saved(run)
    lost = next(iter(expert_adapters(run)))
    del content["state_dict"][lost]
    torch.save(content, copy)
    assert "is nothing, expected" in refused(command, "export", copy, tmp_path / "out", "--pretrained", qwen)


@pytest.mark.parametrize("kind", ["gpt_oss", "llama"])
@pytest.mark.filterwarnings("ignore")
def test_adapters_start_the_same_where_weights_are_read_later(kind: str, tmp_path: Path) -> None:
    """FSDP2 shards a model of the `meta` device, where peft's own first values are lost."""
    folder = make_tiny(kind, tmp_path)
    torch.manual_seed(3)
    whole = LoRA(str(folder), r=2).build()
    torch.manual_seed(3)
    with deferred_weights() as weights:
        later = LoRA(str(folder), r=2).build()
    assert weights.owed
    weights.load(later, torch.device("cpu"))
    ours, theirs = whole.state_dict(), later.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_experts_in_shards_are_merged(fit: Fit, tmp_path: Path) -> None:
    folder = make_tiny("gpt_oss", tmp_path / "gpt_oss")
    two = ("--trainer.max_epochs", "2", *ADAPTED, *strategy("fsdp2"), "--trainer.accumulate_grad_batches", 2)
    shards = fit(*two, pretrained=folder, ranks=2)
    assert max(column(shards, "sync/logprob_mismatch")) < 1e-5
    assert column(shards, "train/kl")[-1] > 1e-3, "the adapters have moved too little to show a stale engine"


@pytest.mark.filterwarnings("ignore")
def test_flat_shards_of_experts_adapters_are_refused(tmp_path: Path) -> None:
    folder = make_tiny("olmoe", tmp_path)
    with pytest.raises(ConfigError, match="FSDPStrategy cannot gather adapters of fused experts: set it to"):
        place(FSDPStrategy(), LoRA(str(folder), r=2).build)
