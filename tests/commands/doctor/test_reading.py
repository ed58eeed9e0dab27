"""A fault between states and logits is found on the side that has it."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import saved, tiny

from grpo_pl.commands.doctor.attribution import attribute
from grpo_pl.commands.doctor.reading import (
    computed_otherwise,
    drawn_otherwise,
    own_logprobs,
    positions,
    read,
)
from grpo_pl.models import LanguageModel
from grpo_pl.models.heads import HeadKind, LayerHead, OwnHead
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.types import Prompt, Rollout

PROMPTS = [Prompt(token_ids=ids, text="", answer="", seed=n) for n, ids in enumerate(([5, 9, 33], [71, 12]))]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny HyperCLOVA X, whose logits are multiplied by `logits_scaling`."""
    place = tmp_path_factory.mktemp("hyperclovax")
    for file in tiny_model.glob("*token*"):
        shutil.copy(file, place)
    return saved(tiny("hyperclovax", vocab_size=320, logits_scaling=1.5), place)


@pytest.fixture(scope="module")
def rollout(folder: str) -> Rollout:
    engine = InProcessEngine(folder)
    engine.start(max_sequence_tokens=64, max_sequences=64, device=torch.device("cpu"))
    return engine.generate(PROMPTS, 8, SamplingConfig(max_tokens=24, temperature=0.8))


def causes(folder: str, rollout: Rollout, engine: HeadKind, trainer: HeadKind) -> list[str]:
    """The causes found if the engine and the trainer had these heads."""
    model = InProcessEngine(folder)
    model.start(max_sequence_tokens=64, max_sequences=64, device=torch.device("cpu"))
    assert model._model is not None
    theirs = read(LanguageModel(model._model, 64, head=engine), rollout).logprobs
    policy = LanguageModel(model._model, 64, head=trainer)
    reading = read(policy, rollout)
    hypotheses = drawn_otherwise(policy, reading, rollout, {})
    hypotheses += computed_otherwise(policy, reading, rollout)
    found = attribute(theirs - reading.logprobs, positions(rollout), hypotheses)
    return [cause.cause for cause in found.causes]


class BareHead(LayerHead):
    """The LM head, and nothing of what the model does besides."""

    @classmethod
    def of(cls, language_model):
        return LayerHead(LayerHead.of(language_model).layer, scale=1.0, cap=None)


def test_an_engine_samples_by_the_own_forward(folder: str, rollout: Rollout) -> None:
    engine = InProcessEngine(folder)
    engine.start(max_sequence_tokens=64, max_sequences=64, device=torch.device("cpu"))
    with torch.no_grad():
        own = own_logprobs(engine._model, rollout)
    assert torch.allclose(rollout.sampling_logprobs[rollout.loss_mask], own, atol=1e-4)


@pytest.mark.parametrize(
    ("engine", "trainer", "expected"),
    [
        (OwnHead, OwnHead, []),
        (OwnHead, LayerHead, ["trainer"]),
        (BareHead, OwnHead, ["head"]),
    ],
)
def test_a_wrong_head_is_blamed_on_who_has_it(
    folder: str, rollout: Rollout, engine: HeadKind, trainer: HeadKind, expected: list[str]
) -> None:
    assert causes(folder, rollout, engine, trainer) == expected
