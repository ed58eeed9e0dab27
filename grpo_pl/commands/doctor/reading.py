"""The trainer's log-probabilities of sampled tokens, and those that it would have if something were wrong."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.commands.doctor import draws
from grpo_pl.commands.doctor.attribution import Hypothesis
from grpo_pl.functional import pad_rows
from grpo_pl.models import LanguageModel
from grpo_pl.models.heads import LayerHead
from grpo_pl.models.logprobs import chunked_logprobs, chunks
from grpo_pl.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 64
"""Rows of logits that exist at once."""
PERTURBATION = 0.02
"""Noise for a parameter, as a share of its standard deviation; for a constant one, the noise itself."""
WRONG_DRAWS = {
    "temperature": (
        "they are those at temperature {got:g}, and data.sampling.temperature is {asked:g}",
        "take logprobs_mode out of data.engine.engine_args (vLLM must give processed_logprobs); an engine of "
        "your own must divide logits by data.sampling.temperature",
    ),
    "top_p": ("the mass that top-p {got:g} cuts off is missing", "have the engine sample with top_p 1"),
    "top_k": ("the mass that top-k {got:g} cuts off is missing", "have the engine sample with top_k 0"),
    "min_p": ("the mass that min-p {got:g} cuts off is missing", "have the engine sample with min_p 0"),
    "repetition_penalty": (
        "a repetition penalty of {got:g} has changed them",
        "have the engine sample with repetition_penalty 1",
    ),
}
"""Setting of a `Draw` -> what it does to log-probabilities, and the fix."""
GENERATION_CONFIG = ": say so in each request, or take it out of the model's generation_config.json"


@dataclass(frozen=True)
class Reading:
    """A policy's log-probabilities of a rollout's sampled tokens, in their order, on the CPU."""

    logprobs: Float[Tensor, "M"]
    hidden: Float[Tensor, "M H"]
    """The state from which each token was chosen, on the policy's device."""


def targets(rollout: Rollout) -> Int[Tensor, "M"]:
    """The sampled tokens."""
    return rollout.token_ids[rollout.loss_mask]


def positions(rollout: Rollout) -> Float[Tensor, "M"]:
    """The position of each sampled token in its response, from 0."""
    return (rollout.loss_mask.cumsum(-1) - 1)[rollout.loss_mask].float()


def with_beginning(
    rollout: Rollout, n: int, prompt: Callable[[list[int]], list[int]]
) -> tuple[Int[Tensor, "T"], Bool[Tensor, "T"]]:
    """A row up to its last sampled token with a changed prompt, and which of its tokens were sampled."""
    before, given = prompt(rollout.prompts[n].token_ids), rollout.prompts[n].token_ids
    rest = slice(len(given), rollout.lengths[n])
    ids = torch.tensor([*before, *rollout.token_ids[n, rest].tolist()])
    return ids, torch.tensor([False] * len(before) + rollout.loss_mask[n, rest].tolist())


def read(
    policy: LanguageModel,
    rollout: Rollout,
    precision: AbstractContextManager[Any] | None = None,
    prompt: Callable[[list[int]], list[int]] = list,
) -> Reading:
    """The policy's log-probabilities, one prompt with all its responses at a time.

    Args:
        policy: The model.
        rollout: The sampled responses.
        precision: The context to compute in.
        prompt: Changes a prompt's token ids before they are read.
    """
    device = next(policy.parameters()).device
    logprobs: list[Tensor] = []
    hidden: list[Tensor] = []
    with torch.no_grad(), precision or nullcontext():
        for group in rollout.group_ids.unique_consecutive():
            rows = (rollout.group_ids == group).nonzero()[:, 0].tolist()
            pairs = [with_beginning(rollout, n, prompt) for n in rows]
            width = max(len(row) for row, _ in pairs)
            ids, mask = (pad_rows(column, width) for column in zip(*pairs, strict=True))
            scores = policy(ids.to(device), mask.to(device), rollout.temperature)
            logprobs.append(scores.logprobs.cpu()[mask].float())
            hidden.append(scores.hidden)
    return Reading(torch.cat(logprobs), torch.cat(hidden))


def perturb(policy: LanguageModel) -> None:
    """Add small noise, the same each time, to every trained parameter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                deviation = float(parameter.float().std(correction=0)) or 1.0
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(PERTURBATION * deviation * noise.to(parameter.device, parameter.dtype))


# ----------------------------------------------------------------------------------------------- hypotheses


@torch.no_grad()
def drawn_otherwise(
    policy: LanguageModel, reading: Reading, rollout: Rollout, defaults: dict[str, float]
) -> list[Hypothesis]:
    """Other temperatures, truncations and penalties than the trainer knows of.

    Args:
        policy: The model.
        reading: Its log-probabilities of the rollout.
        rollout: The sampled responses.
        defaults: The model's own sampling settings.
    """
    asked = rollout.temperature
    others = draws.suspects(asked, defaults)
    ways = [draws.Draw(asked), *(draw for _, draw in others)]
    tokens, seen, parts = targets(rollout), list(seen_before(rollout)), []
    for rows in chunks(len(tokens), ROWS):
        logits = policy.head.logits(reading.hidden[rows])
        marks = torch.zeros(logits.shape, dtype=torch.bool)
        for mark, before in zip(marks, seen[rows], strict=True):
            mark[before] = True
        device = logits.device
        parts.append(draws.logprobs(logits, tokens[rows].to(device), marks.to(device), ways).cpu())
    expected, *predicted = torch.cat(parts, -1)
    hypotheses = []
    for (key, draw), row in zip(others, predicted, strict=True):
        found, fix = WRONG_DRAWS[key]
        fix += "" if key == "temperature" else GENERATION_CONFIG
        found = found.format(got=getattr(draw, key), asked=asked)
        hypotheses.append(Hypothesis(key.replace("_", "-"), found, fix, row - expected))
    return hypotheses


@torch.no_grad()
def computed_otherwise(policy: LanguageModel, reading: Reading, rollout: Rollout) -> list[Hypothesis]:
    """The model's own forward, were the trainer wrong, and the LM head alone, were the engine.

    Args:
        policy: The model.
        reading: Its log-probabilities of the rollout.
        rollout: The sampled responses.
    """
    name, model = type(policy.language_model).__name__, policy.language_model
    hypotheses = [
        Hypothesis(
            "trainer",
            f"they are those of the own forward of {name}, and the trainer's are not",
            "take a model of another architecture, and report this one: no setting of the engine is at fault",
            own_logprobs(model, rollout) - reading.logprobs,
        )
    ]
    whole, layer = policy.head, LayerHead.of(model).layer
    bare = LayerHead(layer, scale=1.0, cap=None)
    if whole != bare and getattr(layer, "in_features", None) == reading.hidden.shape[-1]:
        tokens = targets(rollout).to(reading.hidden.device)
        alone, _ = chunked_logprobs(reading.hidden, tokens, bare, rollout.temperature, ROWS, entropy=None)
        hypotheses.append(
            Hypothesis(
                "head",
                f"they are those of the LM head alone, without what else {name} does to states and logits",
                "take a version of the engine that knows this architecture",
                alone.cpu() - reading.logprobs,
            )
        )
    return hypotheses


def own_logprobs(model: "PreTrainedModel", rollout: Rollout) -> Float[Tensor, "M"]:
    """The log-probabilities of the sampled tokens by a model's own forward, one sequence at a time."""
    device, parts = next(model.parameters()).device, []
    for length, ids, mask in zip(rollout.lengths, rollout.token_ids, rollout.loss_mask, strict=True):
        sequence, sampled = ids[:length].to(device), mask[1:length].to(device)
        logits = model(input_ids=sequence[None], use_cache=False).logits[0, :-1][sampled]
        distribution = (logits.float() / rollout.temperature).log_softmax(-1)
        parts.append(distribution.gather(-1, sequence[1:][sampled][:, None])[:, 0].cpu())
    return torch.cat(parts)


def seen_before(rollout: Rollout) -> Iterator[Tensor]:
    """The tokens before each sampled token."""
    for row, column in rollout.loss_mask.nonzero().tolist():
        yield rollout.token_ids[row, :column]


def read_otherwise(
    policy: LanguageModel, reading: Reading, rollout: Rollout, bos: int | None
) -> list[Hypothesis]:
    """Other beginnings of the prompt than the trainer reads; none for a tokenizer without BOS."""
    if bos is None:
        return []
    variants: dict[str, Callable[[list[int]], list[int]]] = {
        "one BOS token more than the trainer": lambda ids: [bos, *ids]
    }
    if rollout.prompts[0].token_ids[:1] == [bos]:
        variants["no BOS token where the trainer reads one"] = lambda ids: ids[1:]
    return [
        Hypothesis(
            "template",
            f"the engine reads {what}",
            "have it take the prompt's token ids as they are (as text, the tokenizer adds BOS by itself)",
            read(policy, rollout, prompt=change).logprobs - reading.logprobs,
        )
        for what, change in variants.items()
    ]


def stale_weights(old: LanguageModel, reading: Reading, rollout: Rollout) -> list[Hypothesis]:
    """Weights that a sync has not replaced: all of them, or the LM head alone.

    Args:
        old: The policy before it was perturbed.
        reading: The log-probabilities of the perturbed one.
        rollout: The engine's responses after the sync.
    """
    before = read(old, rollout).logprobs
    tokens = targets(rollout).to(reading.hidden.device)
    with torch.no_grad():
        head, _ = chunked_logprobs(reading.hidden, tokens, old.head, rollout.temperature, ROWS, entropy=None)
    return [
        Hypothesis(
            "sync",
            "they are those of the weights before the sync: none was replaced",
            "data.engine.load_weights must replace all weights and forget the prefix cache; start a server "
            "with python -m grpo_pl.rollout.server",
            before - reading.logprobs,
        ),
        Hypothesis(
            "sync",
            "the LM head is that from before the sync, and all else is new",
            "after a reload repack a tied LM head (vLLM on a CPU: rollout.vllm.repack_tied_head), or take a "
            "model with untied embeddings",
            head.cpu() - reading.logprobs,
        ),
    ]
