"""An LM head that multiplies in float32 while all else computes in bfloat16, in trainer and engines."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import Fit
from helpers.engines import Served, perturbed, prompts
from helpers.run_results import NO_VALIDATION, strategy, untimed
from torch import Tensor, nn

from grpo_pl.commands.tiny_model import make_tiny_model
from grpo_pl.models import CausalLM, LanguageModel
from grpo_pl.models.heads import LayerHead, OwnHead, compute_head_in
from grpo_pl.models.loading import load_language_model
from grpo_pl.models.logprobs import chunked_logprobs
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.vllm import VLLMEngine

TOKENS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[False] * 3 + [True] * 6, [False] * 2 + [True] * 5 + [False] * 2])
HALF = torch.autocast("cpu", torch.bfloat16)


def learnt(model: LanguageModel, *, half: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The log-probabilities of the tokens, and the gradients of a function of them and their entropy."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        scores = model(TOKENS, MASK, 0.7, entropy="gradient")
        objective = (scores.logprobs[MASK] * torch.linspace(-1, 2, int(MASK.sum()))).sum()
        (objective + scores.entropy.sum()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return scores.logprobs.detach(), gradients


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_untied_model"])
def test_logits_are_float32_products_of_the_states(kind: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(kind))
    ours, plain = (
        CausalLM(folder, attention="sdpa", chunk_tokens=3, head_dtype=d).build() for d in ("float32", None)
    )
    with HALF, torch.no_grad():
        said, rounded = (model(TOKENS, MASK, 0.7).logprobs[MASK] for model in (ours, plain))
        states = plain.language_model.model(TOKENS).last_hidden_state[:, :-1][MASK[:, 1:]]
    logits = states.float() @ plain.language_model.get_output_embeddings().weight.T / 0.7
    exact = logits.log_softmax(-1).gather(-1, TOKENS[MASK][:, None])[:, 0]
    assert torch.allclose(said, exact, atol=1e-5)
    assert float((rounded - exact).abs().mean()) > 1e-4


@pytest.mark.parametrize("cap", [None, 1e6], ids=["plain", "capped"])
def test_the_gradient_is_the_one_that_autograd_derives_in_float32(
    tiny_untied_model: Path, cap: float
) -> None:
    """In bfloat16 it is off by 100 times the tolerance."""
    found = []
    for head_dtype, half in (("float32", True), (None, False)):
        model = load_language_model(str(tiny_untied_model), "float32")
        compute_head_in(head_dtype, model)
        layer = model.get_output_embeddings()
        states = torch.randn(20, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            head = LayerHead(layer, 1.0, cap)
            logprobs, spread = chunked_logprobs(states, torch.arange(20), head, 0.7, 6, "gradient")
        ((logprobs * torch.linspace(-1, 2, 20)).sum() + spread.sum()).backward()
        found.append([logprobs, spread, states.grad, layer.weight.grad])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_untied_model"])
def test_where_all_computes_in_float32_it_changes_no_bit(kind: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(kind))
    said, expected = (
        learnt(CausalLM(folder, head_dtype=head).build(), half=False) for head in ("float32", None)
    )
    assert torch.equal(said[0], expected[0])
    assert all(torch.equal(said[1][name], gradient) for name, gradient in expected[1].items())


def test_plain_capped_and_own_heads_all_multiply_in_float32(tiny_model: Path) -> None:
    model = load_language_model(str(tiny_model), "float32")
    compute_head_in("float32", model)
    plain = LayerHead.of(model)
    states = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(6)
    exact = (states @ plain.layer.weight.T).log_softmax(-1)[range(6), targets]
    assert plain.is_plain
    with HALF:
        for head in (plain, LayerHead(plain.layer, 1.0, cap=1e6), OwnHead.of(model)):
            said, _ = chunked_logprobs(states, targets, head, 1.0, 4, None)
            assert torch.allclose(said, exact, atol=1e-4), type(head)


def test_the_weights_stay_where_and_what_they_are(tiny_model: Path) -> None:
    plain, model = (CausalLM(str(tiny_model), head_dtype=d).build().language_model for d in (None, "float32"))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_head_of_another_kind_is_refused(tiny_untied_model: Path) -> None:
    model = load_language_model(str(tiny_untied_model), "float32")
    model.set_output_embeddings(nn.Bilinear(2, 2, 2))
    with pytest.raises(ValueError, match=r"^head_dtype=float32 .* LlamaForCausalLM has Bilinear: set"):
        compute_head_in("float32", model)


# ------------------------------------------------------------------------------------------------- engines


def check_head(build: Callable[[str | None], RolloutEngine], folder: Path) -> None:
    """Before and after a sync, the engine's logits are float32 products, so that no two tokens tie."""
    sampling = SamplingConfig(12, 0.8, top_k=30)
    widths = {}
    for dtype in (None, "float32"):
        served = Served(build(dtype), folder)
        for model in (None, perturbed(folder)):
            if model is not None:
                served.sync(model)
            rollout = served.engine.generate(prompts(folder), 4, sampling)
            counts = (rollout.candidates >= 0).sum(-1)[rollout.loss_mask]
            widths.setdefault(dtype, []).append(float((counts > 30).float().mean()))
        served.engine.shutdown()
    assert widths["float32"] == [0.0, 0.0]
    assert min(widths[None]) > 0.1


def test_the_engine_of_this_process_keeps_it_through_a_sync(tiny_model: Path) -> None:
    check_head(lambda dtype: InProcessEngine(str(tiny_model), "bfloat16", head_dtype=dtype), tiny_model)


@pytest.mark.vllm
def test_vllm_keeps_it_through_a_sync(tiny_model: Path) -> None:
    check_head(lambda dtype: VLLMEngine(str(tiny_model), "bfloat16", 0.1, head_dtype=dtype), tiny_model)


def test_vllm_gets_it_beside_the_overrides_of_the_user() -> None:
    engine = VLLMEngine(engine_args={"hf_overrides": {"rope_theta": 5.0}}, head_dtype="float32")
    assert engine.engine_args == {"hf_overrides": {"rope_theta": 5.0, "head_dtype": "float32"}}
    assert VLLMEngine(engine_args={"hf_overrides": {"head_dtype": "float32"}}).head_dtype == "float32"


# ---------------------------------------------------------------------------------------------------- runs


def test_one_key_sets_it_on_all_sides_and_in_float32_changes_no_bit(fit: Fit) -> None:
    plain = fit("--trainer.max_epochs", 1, *NO_VALIDATION)
    folder = fit("--head_dtype", "float32", "--trainer.max_epochs", 1, *NO_VALIDATION)
    assert untimed(folder) == untimed(plain)
    assert (folder / "config.yaml").read_text().count("head_dtype: float32") == 4  # with the key itself


def test_a_one_sided_head_is_named(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--model.policy.head_dtype", "float32", "--trainer.max_epochs", 1, *NO_VALIDATION)
    said = "policy.head_dtype is float32, model.reference.head_dtype is null, data.engine.head_dtype is null"
    assert said in capsys.readouterr().out


SHARDED = [
    pytest.param("fsdp2", 2, id="fsdp2"),
    pytest.param("fsdp2_tp", 4, id="tensor parallel", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "ranks"), SHARDED)
def test_in_shards_it_changes_no_bit_of_float32(fit: Fit, tmp_path: Path, name: str, ranks: int) -> None:
    model = make_tiny_model(tmp_path / "tiny", key_value_heads=2)
    short = ("--trainer.max_epochs", 1, "--trainer.accumulate_grad_batches", 1, *NO_VALIDATION)
    short = (*short, *strategy(name))
    plain, folder = (
        fit(*short, *head, pretrained=model, ranks=ranks) for head in ((), ("--head_dtype", "float32"))
    )
    assert untimed(folder) == untimed(plain)
