"""Compares what grpo_pl computes of a model with the model's own forward, once, on a few tokens.

It runs where the weights are: when a model is built whole. A model whose weights are read later, shard by
shard (FSDP2), is compared from its states to its logits alone, with random weights.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_pl.models.heads import HeadKind, LayerHead, OwnHead, possible_widths, trunk_of
from grpo_pl.models.loading import set_attention
from grpo_pl.models.packing import hidden_before_each_token, obstacle_to_trees
from grpo_pl.models.tree_attention import TREE
from grpo_pl.system.refusal import ArgumentError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (3, 5), (3, 2), (2, 4)
"""The tokens of each sequence's prompt and response; the first two have the same prompt."""
LARGE = 100.0
"""Logits with which a cap shows."""
FAILURES = ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError, ImportError
"""The errors of models that cannot be called with tokens alone."""
INSTEAD = "give a causal language model of another architecture, such as Llama or Qwen3"


class Tolerance(NamedTuple):
    """The differences that rounding explains."""

    logprobs: float
    """As a share of the largest."""
    states: float
    """In a token's state, on average, as a share of its average size."""


FULL, HALF = Tolerance(logprobs=1e-4, states=1e-3), Tolerance(logprobs=0.02, states=0.2)


class Probe(NamedTuple):
    """A few sequences, padded on the right."""

    token_ids: Int[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]

    @classmethod
    def of(cls, language_model: "PreTrainedModel") -> "Probe":
        """The probe for a model, always the same."""
        shape = len(LENGTHS), max(map(sum, LENGTHS))
        token_ids = ordinary_tokens(language_model, shape[0] * shape[1]).view(shape)
        token_ids[1, : LENGTHS[1][0]] = token_ids[0, : LENGTHS[0][0]]
        loss_mask = torch.zeros(shape, dtype=torch.bool)
        for mask, (prompt, response) in zip(loss_mask, LENGTHS, strict=True):
            mask[prompt : prompt + response] = True
        return cls(token_ids, loss_mask.to(language_model.device))

    @property
    def sequences(self) -> list[Int[Tensor, "1 L"]]:
        """Each sequence alone."""
        return [ids[None, : sum(n)] for ids, n in zip(self.token_ids, LENGTHS, strict=True)]


def ordinary_tokens(language_model: "PreTrainedModel", count: int) -> Int[Tensor, "L"]:
    """Tokens from all over the vocabulary that stand for nothing special, always the same."""
    config = language_model.config.get_text_config()
    stated = language_model.config.to_dict() | config.to_dict()
    named = [value for key, value in stated.items() if "token_i" in key]
    special = {token for value in named for token in (value if isinstance(value, list) else [value])}
    ordinary = torch.tensor([t for t in range(config.vocab_size) if t not in special] or [0])
    return ordinary[torch.linspace(0, len(ordinary) - 1, count).long()].to(language_model.device)


@torch.no_grad()
def fitting_head(language_model: "PreTrainedModel", pretrained: str, attention: str | None) -> HeadKind:
    """The way from states to logits that is the model's own: its layer if that is all, else its forward.

    Refuses a model whose logits are reached neither way, and what `check_states` refuses.
    """
    if language_model.device.type == "meta":
        _use_trees(language_model, attention)
        if torch.get_default_device().type == "meta":  # nobody will ask for numbers
            return LayerHead
        with called(language_model, pretrained):
            return _head_without_weights(language_model, state_size(language_model, pretrained))
    probe = Probe.of(language_model)
    with called(language_model, pretrained), _evaluated(language_model):
        alone = _states_alone(language_model, probe)
        own = [language_model(input_ids=ids, use_cache=False).logits[0] for ids in probe.sequences[::2]]
    found = _head_with_weights(language_model, torch.cat(alone[::2]), torch.cat(own))
    if found is None:
        raise ArgumentError(
            f"pretrained={pretrained}: the logits of {type(language_model).__name__} do not follow from its "
            f"states, so its log-probabilities would be wrong: {INSTEAD}"
        )
    _check_states(language_model, pretrained, attention, probe, alone)
    return found


@torch.no_grad()
def state_size(language_model: "PreTrainedModel", pretrained: str) -> int:
    """The width of a model's states: the one that its own forward takes behind its trunk.

    No key of configurations says it for all models: OPT-350m's states are as wide as its embeddings, half
    of `hidden_size`, and Reformer's twice as wide. Reads the head's weights, so a sharded model is too late.
    """
    for width in (widths := possible_widths(language_model)):
        states = torch.zeros(1, width, dtype=language_model.dtype, device=language_model.device)
        with called(language_model, pretrained):
            fits = _logprobs(OwnHead, language_model, states) is not None
        if fits:
            return width
    raise ArgumentError(
        f"pretrained={pretrained}: the states of {type(language_model).__name__} have none of the widths "
        f"{', '.join(map(str, widths))} that its config.json and LM head speak of: {INSTEAD}"
    )


@torch.no_grad()
def check_states(language_model: "PreTrainedModel", pretrained: str, attention: str | None) -> None:
    """Refuse a model whose states of a sequence depend on chance, on later tokens or on other sequences.

    Args:
        language_model: A model with a trunk; one without weights is not compared.
        pretrained: Where it comes from.
        attention: The option. Null or "tree" gives the model the attention of a tree, where its states stay
            what they are; "tree" refuses the others.
    """
    if language_model.device.type == "meta":
        _use_trees(language_model, attention)
        return
    probe = Probe.of(language_model)
    with called(language_model, pretrained), _evaluated(language_model):
        alone = _states_alone(language_model, probe)
    _check_states(language_model, pretrained, attention, probe, alone)


def _check_states(
    language_model: "PreTrainedModel",
    pretrained: str,
    attention: str | None,
    probe: Probe,
    alone: list[Tensor],
) -> None:
    name, trunk = type(language_model).__name__, trunk_of(language_model)
    tolerance = _tolerance(language_model).states
    for key, value in _jitters(language_model.config.to_dict()):
        raise ArgumentError(
            f"pretrained={pretrained}: with {key}={value} in its config.json {name} draws random numbers "
            f"in training, so no two passes would agree: {INSTEAD}"
        )
    if _apart(alone[0][: LENGTHS[0][0]], alone[1][: LENGTHS[1][0]]) > tolerance:
        decoder = "set is_decoder to true in its config.json if it was trained as a decoder, else "
        fix = (decoder if getattr(language_model.config, "is_decoder", None) is False else "") + INSTEAD
        raise ArgumentError(f"pretrained={pretrained}: in {name} a token sees those after it: {fix}")
    chosen = torch.cat([states[prompt - 1 : -1] for states, (prompt, _) in zip(alone, LENGTHS, strict=True)])
    with called(language_model, pretrained):
        padded = hidden_before_each_token(trunk, *probe).hidden
    if not _apart(padded, chosen) <= tolerance:
        raise ArgumentError(
            f"pretrained={pretrained}: {name} computes other states in a padded batch than of each sequence "
            f"alone, so its log-probabilities would be wrong: {INSTEAD}"
        )
    _use_trees(language_model, attention, lambda: _keeps_apart(trunk, probe, chosen, tolerance))


def _use_trees(
    language_model: "PreTrainedModel", attention: str | None, same: Callable[[], bool] = lambda: True
) -> None:
    """Give a model the attention of a tree if the option allows it and its states are then the `same`."""
    if attention not in (None, TREE):
        return
    if (obstacle := obstacle_to_trees(language_model)) is None:
        before = language_model.config._attn_implementation
        set_attention(language_model, TREE)
        if same():
            return
        set_attention(language_model, before)
        obstacle = "it does not keep the sequences of a row apart"
    if attention == TREE:
        raise ArgumentError(
            f"attention={TREE}: {type(language_model).__name__}: {obstacle}: set attention to null"
        )


def _keeps_apart(trunk: "PreTrainedModel", probe: Probe, chosen: Tensor, tolerance: float) -> bool:
    try:
        with torch.random.fork_rng(devices=[]):
            row = hidden_before_each_token(trunk, *probe)
    except FAILURES:  # of arguments that it does not take
        return False
    return _apart(row.of_each(row.hidden), chosen) <= tolerance


def _states_alone(language_model: "PreTrainedModel", probe: Probe) -> list[Float[Tensor, "L H"]]:
    trunk = trunk_of(language_model)
    return [trunk(input_ids=ids, use_cache=False).last_hidden_state[0] for ids in probe.sequences]


def _jitters(config: dict[Any, Any]) -> Iterator[tuple[str, float]]:
    """The settings of a configuration that let a model draw random numbers while it is trained."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _jitters(value)
        elif "jitter" in str(key) and value:
            yield key, value


def _head_with_weights(
    language_model: "PreTrainedModel", states: Float[Tensor, "M H"], own_logits: Float[Tensor, "M V"]
) -> HeadKind | None:
    """The kind of head that gives the model's own logits; None if neither does."""
    own, tolerance = own_logits.float().log_softmax(-1), _tolerance(language_model).logprobs
    kinds: list[HeadKind] = [LayerHead, OwnHead]
    found = [kind for kind in kinds if _agree(_logprobs(kind, language_model, states), own, tolerance)]
    if found == kinds:
        larger = states * (LARGE / float(own_logits.abs().max().clamp(min=1e-6)))
        by_layer, by_forward = (_logprobs(kind, language_model, larger) for kind in kinds)
        return LayerHead if _agree(by_layer, by_forward, tolerance) else OwnHead
    return found[0] if found else None


def _head_without_weights(language_model: "PreTrainedModel", width: int) -> HeadKind:
    """The same on the `meta` device: what is behind the trunk gets random weights for once."""
    trunk, model = trunk_of(language_model), copy.copy(language_model)
    model._modules = {
        name: child if child is trunk else copy.deepcopy(child).to_empty(device="cpu")
        for name, child in language_model.named_children()
    }
    behind = [child for child in model.children() if child is not trunk]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for tensor in (t for child in behind for t in (*child.parameters(), *child.buffers())):
            tensor.normal_()
        states = torch.randn(4, width, dtype=model.dtype)
    own = OwnHead.of(model).logits(states).log_softmax(-1)
    by_layer = _logprobs(LayerHead, model, states)
    return LayerHead if _agree(by_layer, own, _tolerance(language_model).logprobs) else OwnHead


def _tolerance(language_model: "PreTrainedModel") -> Tolerance:
    return FULL if language_model.dtype in (torch.float32, torch.float64) else HALF


def _logprobs(kind: HeadKind, model: "PreTrainedModel", hidden: Float[Tensor, "M H"]) -> Tensor | None:
    """All log-probabilities by a head of this kind; None if the model has none that fits the states."""
    try:
        return kind.of(model).logits(hidden).log_softmax(-1)
    except FAILURES:
        return None


def _agree(ours: Tensor | None, own: Tensor | None, tolerance: float) -> bool:
    """Whether two distributions are one, up to rounding, wherever the second gives tokens a chance."""
    if ours is None or own is None or ours.shape != own.shape:
        return False
    ours, own = ours[possible := own > -1e4], own[possible]
    return bool((ours - own).abs().max() <= tolerance * own.abs().max())


def _apart(ours: Float[Tensor, "M H"], own: Float[Tensor, "M H"]) -> float:
    """The largest difference between two states of a token, as a share of their size."""
    difference, size = (ours - own).float().abs().mean(-1), own.float().abs().mean(-1)
    return float((difference / size.clamp(min=1e-12)).max())


@contextmanager
def _evaluated(model: "PreTrainedModel") -> Iterator[None]:
    """In the body, the model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def called(model: "PreTrainedModel", pretrained: str) -> Iterator[None]:
    """In the body, a model that fails with a few tokens is refused; random numbers stay as they are."""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except ConfigError:
        raise
    except FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArgumentError(
            f"pretrained={pretrained}: {type(model).__name__} cannot be called with tokens alone "
            f"({reason:.200}): {INSTEAD}"
        ) from error
