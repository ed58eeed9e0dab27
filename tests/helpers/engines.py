"""Engines that serve a model folder, and how far what they sample is from the trainer's own numbers."""

from pathlib import Path

import torch

from grpo_pl.models import CausalLM, LanguageModel
from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.loading import load_tokenizer
from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.types import Prompt, Rollout

SAMPLING = SamplingConfig(max_tokens=24, temperature=0.8)


def prompts(
    folder: Path, questions: tuple[str, ...] = ("What is 2?", "Say a number.", "What is the answer, then?")
) -> list[Prompt]:
    tokenizer = load_tokenizer(str(folder))
    encoded = [tokenizer(question)["input_ids"] for question in questions]
    return [
        Prompt(token_ids=list(ids), text=text, answer="", seed=100 + i)
        for i, (ids, text) in enumerate(zip(encoded, questions, strict=True))
    ]


def perturbed(folder: Path, scale: float = 0.05) -> LanguageModel:
    """The model with every parameter moved by noise of that share of its own size."""
    model = CausalLM(str(folder)).build()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def mismatch(model: LanguageModel, rollout: Rollout) -> torch.Tensor:
    """|engine - transformers| of each sampled token, in nats."""
    with torch.no_grad():
        scores = model(rollout.token_ids, rollout.loss_mask, rollout.temperature)
    return (scores.logprobs - rollout.sampling_logprobs)[rollout.loss_mask].abs()


class Served:
    """An engine on a model folder, with what it was told to serve."""

    before: object = None
    after: object = None
    """Of its start, where a test has noted something."""

    def __init__(self, engine: RolloutEngine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        engine.start(max_sequence_tokens=96, max_sequences=16, device=torch.device("cpu"))

    def sync(self, model: LanguageModel, version: int = 1) -> None:
        self.engine.load_weights(full_weights(model.language_model), version=version)


def same_rollout(one: Rollout, other: Rollout) -> bool:
    """Whether two rollouts agree in every token, its log-probability and its text."""
    names = ("token_ids", "sampling_logprobs", "truncated", "loss_mask")
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
        and one.responses == other.responses
        and one.token_ends == other.token_ends
    )


def check_a_sync(served: Served) -> None:
    """After a sync the engine's log-probabilities are the trainer's, and before it they are not."""
    model = perturbed(served.folder)
    served.sync(CausalLM(str(served.folder)).build())
    stale = served.engine.generate(prompts(served.folder), 4, SAMPLING)
    assert mismatch(model, stale).mean() > 0.01, "the perturbation is too small to show a stale engine"
    served.sync(model)
    assert mismatch(model, served.engine.generate(prompts(served.folder), 4, SAMPLING)).mean() < 1e-4
