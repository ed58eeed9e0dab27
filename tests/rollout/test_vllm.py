"""vLLM and mixtures of experts; a file of its own, because vLLM starts none beside a dense model's engine."""

from pathlib import Path

import pytest
from helpers.commands import Fit, Refused
from helpers.engines import SAMPLING, Served, mismatch, perturbed, prompts
from helpers.mixtures import make_tiny

from grpo_pl.rollout.vllm import VLLMEngine


@pytest.mark.vllm
def test_experts_are_those_of_the_trainer_after_each_sync(tmp_path: Path) -> None:
    """The experts are 24 wide, which the CPU's kernel pads: packing them again in place would not do."""
    folder = make_tiny("qwen3_moe", tmp_path, head_dim=32, mlp_only_layers=[], tie_word_embeddings=True)
    served = Served(VLLMEngine(str(folder), "float32", 0.1), folder)
    gaps = []
    for scale in (0.0, 0.05, 0.3):
        model = perturbed(folder, scale)
        served.sync(model)
        gaps.append(mismatch(model, served.engine.generate(prompts(folder), 4, SAMPLING)).mean())
    served.engine.shutdown()
    assert max(gaps) < 1e-5


def test_a_model_whose_experts_vllm_does_not_reload_is_refused_before_vllm_starts(
    fit: Fit, refused: Refused, tmp_path: Path
) -> None:
    """A reload leaves its experts as they are, and says so in a warning alone."""
    folder = make_tiny("gpt_oss", tmp_path, head_dim=32, intermediate_size=64)
    sentence = "data.engine: VLLMEngine on a CPU cannot replace the experts of a model of type gpt_oss: take "
    assert sentence in refused(fit, "--pretrained", folder, "--data.engine", "VLLMEngine")
