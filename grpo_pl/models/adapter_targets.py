"""Which weights of a model get a low-rank adapter: linear layers, and the matrices of fused experts."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from inspect import getsource
from typing import TYPE_CHECKING

from torch import nn

from grpo_pl.models.loading import plain_linear_layers, stored_parts
from grpo_pl.system.refusal import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
ROUTER = re.compile(r"router|moe\w*gate\b", re.IGNORECASE)
"""What the classes and names of layers say that choose a token's experts."""
LIKE_LINEAR = {"FalconLinear"}
"""Subclasses of `nn.Linear` that compute what it does; others, such as grouped ones, compute with W + B A."""


@dataclass
class Targets:
    """The names of what gets an adapter.

    Example: of a Qwen3-MoE, `modules=["model.layers.0.self_attn.q_proj", ...]` and
    `parameters=["model.layers.0.mlp.experts.gate_up_proj", ...]`.
    """

    modules: list[str] = field(default_factory=list)
    """Linear layers, and embeddings other than the model's ends."""
    parameters: list[str] = field(default_factory=list)
    """Matrices of modules that are no plain linear layer: all experts in one tensor, routers."""

    shared: list[str] = field(default_factory=list)
    """Linear layers that `all-linear` leaves out, since other layers have the same weight."""

    def kinds(self) -> list[str]:
        """What is adapted, without the layers' numbers: `q_proj`, `experts.gate_up_proj`."""
        names = last_parts(self.modules)
        names += [".".join(n.removesuffix(".weight").split(".")[-2:]) for n in self.parameters]
        return list(dict.fromkeys(names))

    def shared_kinds(self) -> list[str]:
        """What is left out because it is shared, without the layers' numbers."""
        return list(dict.fromkeys(last_parts(self.shared)))


def last_parts(names: Iterable[str]) -> list[str]:
    """The last part of each name."""
    return [name.rpartition(".")[2] for name in names]


@dataclass(frozen=True)
class Candidate:
    """A weight that can get an adapter."""

    name: str
    """The name of its module, or of the parameter in a module that holds several."""
    parts: tuple[str, ...] = ()
    """The names under which a checkpoint stores its parts: `gate_proj` and `up_proj` of `gate_up_proj`."""
    parameter: str = ""
    """The name of the parameter; empty for a layer that computes its adapter beside its weight."""
    linear: bool = True
    """Whether `all-linear` means it."""

    @property
    def weight(self) -> str:
        """The name of the parameter that is adapted."""
        return self.parameter or f"{self.name}.weight"


def find_targets(model: "PreTrainedModel", wanted: str | list[str]) -> Targets:
    """The weights that `target_modules` means; refuses names of none, a shared or half a fused one."""
    every = list(candidates(model))
    ends, same = end_names(model), shared_weights(model)
    if wanted == ALL_LINEAR:
        linear = [one for one in every if one.linear and one.name not in ends]
        alone = [one for one in linear if one.weight not in same]
        if not alone:
            raise ArgumentError(
                f"target_modules={wanted} finds no linear layer that can get an adapter in a "
                f"{type(model).__name__}: set model.policy to CausalLM"
            )
        found = targets(alone)
        found.shared = [one.name for one in linear if one.weight in same]
        return found
    matchers = [whole(wanted)] if isinstance(wanted, str) else [ending(name) for name in wanted]
    chosen = [one for one in every if chosen_by(one, matchers)]
    if any(one.name in ends for one in chosen):
        raise ArgumentError(
            f"target_modules={wanted} takes in the embedding or the LM head: name layers between them, or "
            "say all-linear"
        )
    if one := next((one for one in chosen if one.weight in same), None):
        raise ArgumentError(refusal(wanted, f"{one.weight} is the same parameter as {same[one.weight]}"))
    names = {name for one in chosen for name in (one.name, *one.parts)}
    others = {name: module for name, module in model.named_modules() if name and name not in names}
    for words, matches in zip([wanted] if isinstance(wanted, str) else wanted, matchers, strict=True):
        if unfit := next((name for name in others if matches(name)), None):
            module = others[unfit]
            read = ": the model reads its weight without calling it" if isinstance(module, nn.Linear) else ""
            kind = type(module).__name__
            raise ArgumentError(refusal(wanted, f"{unfit}, a {kind}, is not supported{read}"))
        if not any(map(matches, names)):
            raise ArgumentError(refusal(wanted, f"{words} is not found in the base model"))
    return targets(chosen)


def refusal(wanted: str | list[str], reason: str) -> str:
    """The sentence about targets that cannot be adapted."""
    return (
        f"target_modules={wanted} cannot get an adapter ({reason}): name linear layers of the model or the "
        "matrices of its experts, or say all-linear"
    )


def targets(chosen: Iterable[Candidate]) -> Targets:
    """The candidates by the way in which they are adapted."""
    found = Targets()
    for one in chosen:
        if one.parameter:
            found.parameters.append(one.parameter)
        else:
            found.modules.append(one.name)
    return found


def whole(pattern: str) -> Callable[[str], bool]:
    """Whether a regular expression matches a whole name."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ArgumentError(f"target_modules={pattern} is no regular expression: {error}") from error
    return lambda name: compiled.fullmatch(name) is not None


def ending(words: str) -> Callable[[str], bool]:
    """Whether a name ends with the given parts."""
    return lambda name: name == words or name.endswith(f".{words}")


def chosen_by(one: Candidate, matchers: list[Callable[[str], bool]]) -> bool:
    """Whether a candidate is named, itself or all of its parts; refuses some of its parts alone."""
    if any(matches(one.name) for matches in matchers):
        return True
    named = [part for part in one.parts if any(matches(part) for matches in matchers)]
    if named and len(named) < len(one.parts):
        lacking = next(part for part in one.parts if part not in named)
        raise ArgumentError(
            f"target_modules names {named[0]} without {lacking}, and both are one weight, {one.name}: name "
            "both or that one, or say more of the layer's name"
        )
    return bool(named)


def candidates(model: "PreTrainedModel") -> Iterator[Candidate]:
    """Every weight that can get an adapter; convolutions cannot."""
    plain, parts = plain_linear_layers(), stored_parts(model)
    routers: tuple[str, ...] = ()
    for name, module in model.named_modules():
        kind = type(module)
        if ROUTER.search(kind.__name__) or ROUTER.search(name.rpartition(".")[2]):
            routers += (f"{name}.",)
        router = f"{name}.".startswith(routers)
        owner, _, leaf = name.rpartition(".")
        parent: type = type(model.get_submodule(owner))
        if leaf in read_directly(parent):
            continue
        if kind in plain or kind.__name__ in LIKE_LINEAR:
            yield Candidate(name, linear=not router)
        elif kind is nn.Embedding:
            yield Candidate(name, linear=False)
        elif "Experts" in kind.__name__:
            for leaf, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    matrix = f"{name}.{leaf}"
                    stored = next((to for end, to in parts.items() if matrix.endswith(end)), ())
                    own = name if leaf == "weight" else matrix
                    yield Candidate(own, tuple(f"{name}.{one}" for one in stored), matrix)
        elif [leaf for leaf, p in module.named_parameters() if p.dim() == 2] == ["weight"]:
            linear = isinstance(module, nn.Linear) and not router
            yield Candidate(name, parameter=f"{name}.weight", linear=linear)


@cache
def read_directly(kind: type) -> frozenset[str]:
    """The layers that a module does not call: its code reads their weights, and would pass adapters by.

    Mamba's mixers are such: `time_step = self.dt_proj.weight @ time_step`. BLOOM's slices, which serve to
    repeat its pretraining exactly, do not count.
    """
    classes = [one for one in kind.__mro__ if issubclass(one, nn.Module) and one is not nn.Module]
    lines = [line for one in classes for line in getsource(one).splitlines() if "init" not in line]
    use = re.compile(r"self\.(\w+)\.weight\b(?!\[|\.(?:dtype|device|data|shape)\b)")
    return frozenset(found for line in lines for found in use.findall(line))


def shared_weights(model: nn.Module) -> dict[str, str]:
    """Each parameter that several layers share, as Zamba's blocks do -> another of its names.

    Each of these layers would get an adapter of its own, and no single weight is their merged one.
    """
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    groups = [group for group in names.values() if len(group) > 1]
    return {name: group[name == group[0]] for group in groups for name in group}


def end_names(model: "PreTrainedModel") -> set[str]:
    """The names of the embedding and of the LM head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name for name, module in model.named_modules() if any(module is end for end in ends)}
