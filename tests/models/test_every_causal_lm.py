"""Every causal language model of transformers says what its own forward says, or is refused in a sentence."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_models import saved, tiny, tiny_config
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grpo_pl.models import CausalLM, LanguageModel, TrunkValueHead, ValueHead
from grpo_pl.models.heads import LayerHead, OwnHead
from grpo_pl.models.loading import load_language_model, without_weights
from grpo_pl.models.own_forward import fitting_head
from grpo_pl.system.refusal import ConfigError

NOT_MADE = {
    "gemma3n": "its vision tower is made by timm, which is not installed",
    "musicgen": "AutoModelForCausalLM makes no model of its configuration",
    "musicgen_melody": "AutoModelForCausalLM makes no model of its configuration",
}
"""The types without a tiny model, and why."""
NEEDS_CACHE = "cannot be called with tokens alone"
LOOKS_AHEAD = "a token sees those after it"
REFUSED = {
    "cpmant": LOOKS_AHEAD,
    "emu3": "could not be loaded",  # its own class does not take its configuration back
    "gemma4_assistant": NEEDS_CACHE,
    "gemma4_unified_assistant": NEEDS_CACHE,
    "mllama": "could not be loaded",
    "phimoe": "draws random numbers in training",
    "prophetnet": "do not follow from its states",
    "xlm": LOOKS_AHEAD,
    "xlnet": LOOKS_AHEAD,
}
"""The types that no policy can be of, and part of the sentence."""
OWN_HEADS = {
    *("falcon_h1", "gemma3", "hyperclovax", "inkling_text", "modernbert-decoder", "mpt", "recurrent_gemma"),
    *("xlstm", "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"),
    *("xlm-roberta-xl", "xmod"),
}
"""The types whose logits are not those of their LM head and of the keys that `LayerHead` knows."""
ENCODERS = {"bert-generation", "reformer", *OWN_HEADS} - {
    *("falcon_h1", "gemma3", "hyperclovax", "inkling_text", "modernbert-decoder", "mpt", "recurrent_gemma"),
    "xlstm",
}
"""The types that are causal only where their configuration says `is_decoder`."""
TREES = {
    *("cohere", "deepseek_v3", "gemma", "glm4_moe", "gpt2", "gpt_neox", "granite", "hyperclovax", "llama"),
    *("mixtral", "olmo2", "opt", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
}
"""Some of the types whose sequences can stand in one tree: a check that refuses all would pass otherwise."""
SEQUENCES = (
    ([5, 9, 33, 60], [7, 50, 8, 41, 90, 22, 6, 3]),
    ([5, 9, 33, 60], [80, 11, 94]),
    ([71, 12], [20, 21, 22, 40, 66, 5]),
)
"""Prompts and responses: longer than the tiny models' windows, and two with one prompt."""


def padded() -> tuple[Tensor, Tensor]:
    """The sequences in rows, with another token than zero on the padding, and where their responses are."""
    tokens = torch.full((3, 12), 17)
    mask = torch.zeros(3, 12, dtype=torch.bool)
    for row, (prompt, response) in enumerate(SEQUENCES):
        tokens[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[row, len(prompt) : len(prompt) + len(response)] = True
    return tokens, mask


def own_logprobs(model: nn.Module) -> Tensor:
    """The log-probabilities of all responses by the model's own forward, one sequence at a time."""
    parts = []
    for prompt, response in SEQUENCES:
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, :-1]
        chosen = logits.float().log_softmax(-1)[len(prompt) - 1 :]
        parts.append(chosen.gather(-1, torch.tensor(response)[:, None])[:, 0])
    return torch.cat(parts)


def gradients(model: nn.Module, logprobs: Tensor) -> dict[str, Tensor]:
    """The gradient of a weighted sum, for each parameter that has one."""
    (logprobs * torch.linspace(-1, 2, len(logprobs))).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same_gradients(policy: LanguageModel, folder: str) -> bool:
    tokens, mask = padded()
    ours = gradients(policy.language_model, policy(tokens, mask, 1.0).logprobs[mask])
    reference = load_language_model(folder, "float32").train()
    own = gradients(reference, own_logprobs(reference))
    largest = max(float(gradient.abs().max()) for gradient in own.values())
    return ours.keys() == own.keys() and all(
        torch.allclose(ours[name], own[name], rtol=0, atol=1e-4 * largest) for name in own
    )


@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - NOT_MADE))
def test_a_type_says_and_learns_what_its_own_forward_says_or_is_refused(kind: str, tmp_path: Path) -> None:
    own = tiny(kind, **({"is_decoder": True} if kind in ENCODERS else {}))
    folder = saved(own, tmp_path)
    if kind in REFUSED:
        with pytest.raises(ConfigError, match=f"^pretrained=.*{REFUSED[kind]}"):
            CausalLM(folder).build()
        return
    with torch.no_grad():
        expected = own_logprobs(own)
    tolerance = {"rtol": 0, "atol": 1e-6 * (1 + float(expected.abs().max()))}
    tokens, mask = padded()
    policy = CausalLM(folder, chunk_tokens=5).build()
    assert isinstance(policy.head, OwnHead if kind in OWN_HEADS else LayerHead)
    assert torch.allclose(policy(tokens, mask, 1.0).logprobs[mask], expected, **tolerance)
    assert same_gradients(policy, folder)
    attention = policy.language_model.config._attn_implementation
    assert attention == "tree" or kind not in TREES
    if attention == "tree":
        padded_rows = CausalLM(folder, attention="sdpa").build()
        assert torch.allclose(padded_rows(tokens, mask, 1.0).logprobs[mask], expected, **tolerance)
    else:
        with pytest.raises(ConfigError, match=f"^attention=tree: {type(own).__name__}: it"):
            CausalLM(folder, attention="tree").build()


@pytest.mark.parametrize("kind", sorted(ENCODERS - {"reformer"}))
def test_an_encoder_is_refused_as_a_policy_and_as_a_critic(kind: str, tmp_path: Path) -> None:
    folder = saved(tiny(kind), tmp_path)
    for builder in (CausalLM(folder), ValueHead(folder)):
        with pytest.raises(ConfigError, match="sees those after it: set is_decoder to true"):
            builder.build()


@pytest.mark.parametrize("kind", ["musicgen", "musicgen_melody"])
def test_a_model_of_several_parts_is_refused(kind: str, tmp_path: Path) -> None:
    kinds = {"text_encoder": "t5", "audio_encoder": "encodec", "decoder": f"{kind}_decoder"}
    parts = {name: CONFIG_MAPPING[part]().to_dict() for name, part in kinds.items()}
    CONFIG_MAPPING[kind](**parts).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="could not be loaded"):
        CausalLM(str(tmp_path)).build()


@pytest.mark.parametrize("key", ["logits_scaling", "logit_scale", "final_logit_softcapping"])
def test_a_key_that_the_model_does_not_read_changes_nothing(key: str, tmp_path: Path) -> None:
    own = tiny("llama")
    setattr(own.config, key, 3.0)
    policy = CausalLM(saved(own, tmp_path)).build()
    tokens, mask = padded()
    with torch.no_grad():
        assert torch.allclose(policy(tokens, mask, 1.0).logprobs[mask], own_logprobs(own), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "head"),
    [
        *[(kind, OwnHead) for kind in ("falcon_h1", "hyperclovax", "modernbert-decoder", "xlstm", "rembert")],
        *[(kind, LayerHead) for kind in ("llama", "gemma2", "cohere", "granite", "opt", "qwen3_moe", "blt")],
        ("opt, 16", LayerHead),
    ],
)
def test_the_head_is_found_without_weights_as_well(kind: str, head: type, dtype: str, tmp_path: Path) -> None:
    """As where FSDP2 reads weights after it has sharded the model."""
    kind, _, narrow = kind.partition(", ")
    own = tiny(kind, **({"word_embed_proj_dim": int(narrow)} if narrow else {}))
    whole = load_language_model(saved(own, tmp_path), dtype)
    with without_weights():
        empty = load_language_model(str(tmp_path), dtype)
    changes = {"is_decoder": True} if kind in ENCODERS else {}
    vars(whole.config).update(changes)
    assert fitting_head(empty, "x", None) is head
    assert all(parameter.is_meta for parameter in empty.parameters())


@pytest.mark.parametrize(
    ("kind", "changes", "width"),
    [
        ("opt", {"word_embed_proj_dim": 16}, 16),
        ("reformer", {"is_decoder": True}, 64),
        ("blt", {}, 32),
        ("rembert", {"is_decoder": True, "output_embedding_size": 48}, 32),
        ("electra", {"is_decoder": True, "embedding_size": 16}, 32),
    ],
)
def test_critics_are_as_wide_as_the_states(kind: str, changes: dict, width: int, tmp_path: Path) -> None:
    """Which no key of the configuration says for all models."""
    folder = saved(tiny(kind, **changes), tmp_path)
    tokens, mask = padded()
    policy = CausalLM(folder).build()
    hidden = policy(tokens, mask, 1.0).hidden
    for critic in (ValueHead(folder).build(policy), TrunkValueHead().build(policy)):
        assert critic.head.in_features == hidden.shape[-1] == width
        critic(tokens, mask, hidden).sum().backward()
        assert critic.head.weight.grad.abs().max() > 0
    with without_weights():
        assert CausalLM(folder).build().state_size == width
        assert ValueHead(folder).build().head.in_features == width


def test_a_critic_from_a_reward_model_is_as_wide_as_its_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config("opt", word_embed_proj_dim=16, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    assert ValueHead(str(tmp_path)).build().head.in_features == 16


def test_a_cap_that_small_logits_do_not_show_is_found(tmp_path: Path) -> None:
    own = tiny("recurrent_gemma", logits_soft_cap=30.0)
    with torch.no_grad():
        own.model.embed_tokens.weight.mul_(0.01)
    assert isinstance(CausalLM(saved(own, tmp_path)).build().head, OwnHead)


def test_the_comparison_leaves_random_numbers_and_gradients_alone(tmp_path: Path) -> None:
    model = load_language_model(saved(tiny("opt"), tmp_path), "float32").train()
    before = torch.get_rng_state()
    fitting_head(model, "x", None)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_critic_whose_sequences_mix_in_a_tree_reads_padded_rows(tmp_path: Path) -> None:
    folder = saved(tiny("rwkv"), tmp_path)
    ValueHead(folder).build()
    with pytest.raises(ConfigError, match="attention=tree: RwkvForCausalLM: its attention cannot"):
        ValueHead(folder, attention="tree").build()
