"""Everything that depends on the inside of jsonargparse 4.53: patches, and the meaning of its messages.

`pyproject.toml` bounds the version; tests/config shows what another one changes.
"""

import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc import locate
from types import FrameType
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser, _typehints, set_parsing_settings
from jsonargparse._actions import _ActionConfigLoad

from grpo_pl.config.components import implementations
from grpo_pl.system.refusal import fail, nearest, no_such_option

set_parsing_settings(
    import_path_denylist=[], instantiate_subclass_spec_in_any=False
)  # or it warns and runs them: config/allowed.py refuses more


def defaults(class_path: str | None) -> dict[str, Any]:
    """The defaults of a class's constructor; empty if there is no such class."""
    cls = locate(class_path or "")
    if not inspect.isclass(cls):
        return {}
    parser = ArgumentParser()
    parser.add_class_arguments(cls, fail_untyped=False)
    return parser.get_defaults().as_dict()


def drop_what_means_something_else(owner: Any, before: Any, after: Any) -> None:
    """When a component of another class replaces one, keep only those settings that mean the same in both.

    Those are the settings with the same default. jsonargparse keeps every setting whose name the new class
    knows: `--model.loss GSPO` over `ClippedSurrogate` would be GSPO with bounds 500 times too wide.
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
    sentence = about_a_moved_class(key, message, options) or about_a_name(key, message, options)
    sentence = sentence or about_code(key, message)
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


def about_a_moved_class(key: str, message: str, options: dict[str, Any]) -> str | None:
    """An import path that leads nowhere, as in configs of older versions, and where its class is now."""
    paths = re.findall(r"\bgrpo_pl(?:\.\w+)*\.[A-Z]\w*", message)
    path = next((path for path in paths if locate(path) is None), None)
    if path is None:
        return None
    name = path.rpartition(".")[2]
    ours = (module for module in sys.modules if module.startswith("grpo_pl."))
    now = next((f"{module}.{name}" for module in ours if is_defined_in(name, module)), None)
    known = (cls.__name__ for cls in implementations(options.get(key)))
    return f"{key}: there is no {path}" + (f"; write {now}" if now else nearest(name, known))


def is_defined_in(name: str, module: str) -> bool:
    """Whether a class of this name comes from an imported module."""
    return getattr(vars(sys.modules[module]).get(name), "__module__", "") == module


def about_a_name(key: str, message: str, options: dict[str, Any]) -> str | None:
    """A sentence on an option that does not exist, or is missing."""
    if unknown := re.search(r"unrecognized arguments: -*([^\s=]+)|does not accept option '(.+?)'", message):
        return no_such_option(unknown[1] or unknown[2], options)
    if unknown := re.search(r"Option '(.+?)' is not accepted", message):
        cls = locate(re.findall(r"class_path[ =]'([\w.]+)'", message)[-1])
        return no_such_option(f"{key}.{unknown[1]}", [f"{key}.{name}" for name in parameters(cls)])
    if missing := re.search(r"arguments are required: (.+)", message):
        leaves = [re.sub(r"^(fit|validate|plan)\.", "", name) for name in missing[1].split(", ")]
        names = [".".join(filter(None, (key, leaf))) for leaf in leaves]
        return f"{', '.join(names)}: no value is given; set it in a --config file or on the command line"
    return None


def about_code(key: str, message: str) -> str | None:
    """A sentence on an import path that a config may not name in this place."""
    if denied := re.search(r"Importing '(.+?)' is not allowed", message):
        return f"{key}: {denied[1]} is nothing that a config may name: it could run or read anything"
    if thing := re.search(r"Unexpected import object .*?Got value: (\S+)", message, re.DOTALL):
        return f"{key}: expected the import path of a function or a class, and {thing[1]} is neither"
    return None


def about_a_value(key: str, message: str, options: dict[str, Any]) -> str | None:
    """A sentence on a file, a class or a plain value of the wrong kind."""
    if file := re.search(r"File does not exist: '(.+)'", message):
        near = nearest(file[1], map(str, Path(file[1]).parent.glob("*")))
        return f"{key}: there is no file {file[1]}{near}"
    got = re.search(r"(?:Got value|Given value): (.*?)(?=\. Got value|$)", message, re.MULTILINE)
    components = sorted(cls.__name__ for cls in implementations(options.get(key)))
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
    if got and (inside := re.match(r"NestedArg\(key='(.+?)'(?:, val='(.+)')?", got[1])):
        if inside[2] and any(get_origin(kind) is dict for kind in (options[key], *get_args(options[key]))):
            near = nearest(inside[2], components)
            return f"{key}.{inside[1]}: expected one of {', '.join(components)}, got {inside[2]}{near}"
        return f"{key}.{inside[1]}: {key} has settings only where it names a class, and does not: name one"
    if got and types:
        expected = " or ".join(dict.fromkeys(plain or f"one of {choices}" for plain, choices in types))
        near = nearest(got[1], re.findall(r"'(.+?)'", expected))
        return f"{key}: expected {expected.replace('NoneType', 'null')}, got {got[1]}{near}"
    return f"{key}: expected an import path such as torch.optim.AdamW, got {name[1]}" if name else None


def parameters(cls: Any) -> list[str]:
    """The parameters of a class's constructor, including those that it hands on."""
    return list(ArgumentParser().add_class_arguments(cls, fail_untyped=False)) if inspect.isclass(cls) else []


@contextmanager
def failed_imports_answered() -> Iterator[None]:
    """End with one sentence and exit code 2 if a module that a config names cannot be imported."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if path := failed_import(error):
            fail(f"{path}: its module cannot be imported ({type(error).__name__}: {error})")
        raise


def failed_import(error: BaseException) -> str | None:
    """The import path, named in a config, whose module raised the error on import; None for other errors."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((frame.f_locals["name"] for frame in frames if is_import(frame)), None)


def is_import(frame: FrameType) -> bool:
    """Whether jsonargparse imports a path of the config in this frame."""
    return frame.f_code.co_name == "import_object" and frame.f_globals["__name__"] == "jsonargparse._util"
