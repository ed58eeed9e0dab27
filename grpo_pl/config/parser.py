"""Reading the command line and config files: a mistake is answered in one sentence."""

import inspect
import re
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn, get_args

from jsonargparse import ArgumentParser, _typehints
from jsonargparse._actions import _ActionConfigLoad
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from grpo_pl.advantages import AdvantageEstimator
from grpo_pl.callbacks.alarm_rules import Alarm
from grpo_pl.config.places import Places
from grpo_pl.losses import Aggregation, PolicyLoss
from grpo_pl.losses.kl import KLPenalty
from grpo_pl.losses.masks import TokenMask
from grpo_pl.models import ModelBuilder
from grpo_pl.models.reference_update import ReferenceUpdate
from grpo_pl.prompts import procedural, sources
from grpo_pl.prompts.sources import PromptSource
from grpo_pl.reward_modeling.objectives import RewardObjective
from grpo_pl.rewards import code_tests, judge, math_answer, models, rules, steps
from grpo_pl.rewards.base import RewardFunction, Verifier
from grpo_pl.rewards.transforms import RewardTransform
from grpo_pl.rollout import dataset, in_process, overlapped, replay, server, vllm
from grpo_pl.rollout.engine import EngineWrapper, RolloutEngine
from grpo_pl.rollout.server.transfer import WeightTransfer
from grpo_pl.system.refusal import fail, nearest, no_such_option

COMPONENTS = (
    Alarm,
    RewardFunction,
    RewardObjective,
    RewardTransform,
    TokenMask,
    ReferenceUpdate,
    AdvantageEstimator,
    PolicyLoss,
    Aggregation,
    KLPenalty,
    ModelBuilder,
    RolloutEngine,
    WeightTransfer,
    PromptSource,
)
"""The abstract classes whose implementations a config names by their short names."""

ENGINES = dataset, in_process, overlapped, replay, server, vllm
IMPLEMENTATIONS = (code_tests, judge, math_answer, models, rules, steps, *ENGINES, procedural, sources)
"""Imported so that their classes answer to their short names."""


class Parser(LightningArgumentParser):
    """Answers a mistake with one sentence and the nearest right name, not with pages of usage."""

    written_by = ""
    """A half-sentence about config files that another version of grpo_pl wrote."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a component inside: the outer one will name the whole key
            super().error(message, ex)
        fail(explain(message, known_options(self)) + self.written_by)

    @override
    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        """Build what a config names; a component's own messages name the key in full."""
        places = Places(cfg[cfg.subcommand] if cfg.get("subcommand") else cfg)
        return super().instantiate_classes(cfg, instantiators=[(places.build, object, True)], **kwargs)


def defaults(class_path: str | None) -> dict[str, Any]:
    """What the constructor of a class takes where nothing is said; empty for what is no import path."""
    cls = locate(class_path or "")
    if not inspect.isclass(cls):
        return {}
    parser = ArgumentParser()
    parser.add_class_arguments(cls, fail_untyped=False)
    return parser.get_defaults().as_dict()


def drop_what_means_something_else(owner: Any, before: Any, after: Any) -> None:
    """When a component gives way to one of another class, keep those settings alone that mean the same there.

    They do where the two classes have the same default. jsonargparse keeps every setting whose name the new
    class knows: `--model.loss GSPO` over `ClippedSurrogate` would be GSPO with bounds 500 times too wide.
    """
    if before and "init_args" in before and before["class_path"] != after["class_path"]:
        old, new = defaults(before["class_path"]), defaults(after["class_path"])
        for key in list(before["init_args"].keys()):
            if key in old and key in new and old[key] != new[key]:
                before["init_args"].pop(key)
    _keep_what_the_new_class_knows(owner, before, after)  # type: ignore[no-untyped-call]


_keep_what_the_new_class_knows = _typehints.discard_init_args_on_class_path_change
_typehints.discard_init_args_on_class_path_change = drop_what_means_something_else


def known_options(parser: ArgumentParser) -> dict[str, Any]:
    """The options of a parser and of its subcommands: dotted name -> the type it takes."""
    options: dict[str, Any] = {}
    for action in parser._actions:
        for subcommand in action.choices.values() if isinstance(action.choices, dict) else ():
            options |= known_options(subcommand)
        names = [name[2:] for name in action.option_strings if name.startswith("--")]
        options |= dict.fromkeys(names, getattr(action, "_typehint", None))
    return options


def groups(parser: ArgumentParser) -> list[str]:
    """The options of a parser that only hold others."""
    holders = [action for action in parser._actions if isinstance(action, _ActionConfigLoad)]
    return [name[2:] for action in holders for name in action.option_strings]


def explain(message: str, options: dict[str, Any]) -> str:
    """The parser's message as one sentence: the key, what was expected, what was got, the nearest name."""
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    sentence = about_a_name(key, message, options) or about_code(key, message)
    if sentence is not None:
        return sentence
    message = re.sub(r"Namespace\(class_path='([\w.]+)'.*\)", r"\1", message)
    if (sentence := about_a_value(key, message, options)) is not None:
        return sentence
    noise = "Expected a path|Does not validate|Subtypes:|Errors:|Given value|Problem with given class"
    text = re.sub(r'Parser key ".+?":|Type \S.* expects a function or a callable class:', "\n", message)
    lines = [line.strip(" -") for line in text.splitlines()]
    reason = " ".join(line for line in lines if line and not re.match(noise, line))
    return f"{key}: {reason}" if key else reason


def about_a_name(key: str, message: str, options: dict[str, Any]) -> str | None:
    """What a message says of an option that does not exist, or is missing."""
    if unknown := re.search(r"unrecognized arguments: -*([^\s=]+)|does not accept option '(.+?)'", message):
        return no_such_option(unknown[1] or unknown[2], options)
    if unknown := re.search(r"Option '(.+?)' is not accepted", message):
        cls = locate(re.findall(r"class_path[ =]'([\w.]+)'", message)[-1])
        return no_such_option(f"{key}.{unknown[1]}", [f"{key}.{name}" for name in parameters(cls)])
    if missing := re.search(r"arguments are required: (.+)", message):
        given = [re.sub(r"^(fit|validate|plan)\.", "", name) for name in missing[1].split(", ")]
        names = [".".join(filter(None, (key, name))) for name in given]
        return f"{', '.join(names)}: no value is given; set it in a --config file or on the command line"
    return None


def about_code(key: str, message: str) -> str | None:
    """What a message says of an import path that a config cannot name there."""
    if denied := re.search(r"Importing '(.+?)' is not allowed", message):
        return f"{key}: {denied[1]} is nothing that a config may name: it could run or read anything"
    if thing := re.search(r"Unexpected import object .*?Got value: (\S+)", message, re.DOTALL):
        return f"{key}: expected the import path of a function or a class, and {thing[1]} is neither"
    return None


def about_a_value(key: str, message: str, options: dict[str, Any]) -> str | None:
    """What a message says of a file, a class or a plain value that is not of the kind that it should be."""
    if file := re.search(r"File does not exist: '(.+)'", message):
        near = nearest(file[1], map(str, Path(file[1]).parent.glob("*")))
        return f"{key}: there is no file {file[1]}{near}"
    got = re.search(r"(?:Got value|Given value): (.*?)(?=\. Got value|$)", message, re.MULTILINE)
    components = sorted(implementations(options.get(key)))
    name = re.search(r"Expected a dot import path string: (.+)", message)
    if got and (kinds := dict.fromkeys(re.findall(r"Not a valid subclass of (\w+)", message))):
        one = ", ".join(components) or "the classes that are a " + " or a ".join(kinds)
        value = re.findall(r"(?:Given value|Got value): (.*?)(?:\. Got value|$)", message, re.MULTILINE)[-1]
        return f"{key}: expected one of {one}, got {value.replace('None', 'null')}"
    if name and components:
        return f"{key}: expected one of {', '.join(components)}, got {name[1]}{nearest(name[1], components)}"
    types = re.findall(
        r"Expected a (?:<class '(.+?)'>|typing\.Literal\[(.+?)\])", message[: got and got.start()]
    )
    if got and (inside := re.match(r"NestedArg\(key='(.+?)'", got[1])):
        return f"{key}.{inside[1]}: {key} has settings only where it names a class, and does not: name one"
    if got and types:
        expected = " or ".join(dict.fromkeys(plain or f"one of {choices}" for plain, choices in types))
        near = nearest(got[1], re.findall(r"'(.+?)'", expected))
        return f"{key}: expected {expected.replace('NoneType', 'null')}, got {got[1]}{near}"
    return f"{key}: expected an import path such as torch.optim.AdamW, got {name[1]}" if name else None


def parameters(cls: Any) -> list[str]:
    """What the constructor of a class takes, with what it hands on to others."""
    return list(ArgumentParser().add_class_arguments(cls, fail_untyped=False)) if inspect.isclass(cls) else []


def implementations(typehint: Any) -> set[str]:
    """The short names of the components that a parameter of this type takes."""
    found = [typehint] if typehint in COMPONENTS or typehint is Verifier else []
    for cls in found:
        found += cls.__subclasses__()
    shown = (cls for cls in found if cls.__module__.startswith("grpo_pl.") and not inspect.isabstract(cls))
    names = {cls.__name__ for cls in shown if not issubclass(cls, EngineWrapper)}
    return names.union(*(implementations(part) for part in get_args(typehint)))
