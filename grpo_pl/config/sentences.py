"""What depends on the inside of jsonargparse 4.53: patches, and the meaning of its messages.

`config/failure.py` reads its exceptions.
`pyproject.toml` bounds the version; tests/config shows what another one changes.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc import locate
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _typehints, set_parsing_settings
from jsonargparse._actions import _ActionConfigLoad
from jsonargparse._util import NestedArg

from grpo_pl.config.expected import all_expected, alternatives, class_names, names_instead, parameters, shown
from grpo_pl.config.failure import Failure, failed_import, find_failure, joined
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
    """The options of a parser: dotted name -> the type it takes."""
    options: dict[str, Any] = {}
    for action in parser._actions:
        names = [name[2:] for name in action.option_strings if name.startswith("--")]
        options |= dict.fromkeys(names, getattr(action, "_typehint", None))
    return options


def groups(parser: ArgumentParser) -> list[str]:
    """The options of a parser that only hold others."""
    holders = [action for action in parser._actions if isinstance(action, _ActionConfigLoad)]
    return [name[2:] for action in holders for name in action.option_strings]


def explain(message: str, options: dict[str, Any], error: BaseException | None = None) -> str:
    """The parser's message as one sentence: the key, what was expected, what was got, the nearest name.

    Args:
        message: The message.
        options: The options of the parser: dotted name -> the type it takes.
        error: The exception that the message comes from.
    """
    failure = find_failure(error) if error else Failure()
    key = failure.key or ".".join(re.findall(r'Parser key "([^"]+)"', message))
    failure = failure._replace(key=key, texts=failure.texts or (message,))
    if failure.refusal:
        failure.refusal.put(key)
        return str(failure.refusal)
    if failure.module:
        return about_a_module(failure)
    sentence = about_a_moved_class(failure) or about_a_name(failure, options) or about_code(failure)
    if sentence := sentence or about_a_value(failure):
        return sentence
    noise = "Expected a path|Does not validate|Subtypes:|Errors:|Given value|Problem with given class"
    layers = r'Parser key ".+?":|Type \S.* expects a function or a callable class:'
    text = re.sub(layers, "\n", failure.texts[0])
    lines = [re.sub(r"\. Got value: .*", "", line).strip(" -") for line in text.splitlines()]
    reason = " ".join(line for line in lines if line and not re.match(noise, line))
    return f"{key}: {reason}" if key else reason


def about_a_module(failure: Failure) -> str:
    """A sentence on a module that raises on its import."""
    return f"{failure.key}: {failure.module}" if failure.key else failure.module


def about_a_moved_class(failure: Failure) -> str | None:
    """An import path that leads nowhere, as in configs of older versions, and where its class is now."""
    paths = re.findall(r"\bgrpo_pl(?:\.\w+)*\.[A-Z]\w*", "\n".join(failure.texts))
    path = next((path for path in paths if locate(path) is None), None)
    if path is None:
        return None
    name = path.rpartition(".")[2]
    ours = (module for module in sys.modules if module.startswith("grpo_pl."))
    now = next((f"{module}.{name}" for module in ours if is_defined_in(name, module)), None)
    advice = f"; write {now}" if now else nearest(name, class_names(failure.typehint))
    return f"{failure.key}: there is no {path}{advice}"


def is_defined_in(name: str, module: str) -> bool:
    """Whether a class of this name comes from an imported module."""
    return getattr(vars(sys.modules[module]).get(name), "__module__", "") == module


def about_a_name(failure: Failure, options: dict[str, Any]) -> str | None:
    """A sentence on an option that does not exist, or is missing, or has no value."""
    key, text = failure.key, "\n".join(failure.texts)
    if failure.list_key:
        entry = f"{failure.list_key}.{failure.value.key}"
        return f"{entry}: an entry of a list has no option; write the list, as --{failure.list_key} '[...]'"
    unknown = re.search(r"unrecognized arguments: -*([^\s=]+)|(?:Group '(.+?)'.*|O)ption '(.+?)'", text)
    if unknown:
        name = joined(key, *filter(None, unknown.groups()))
        return no_such_option(name, [f"{key}.{one}" for one in parameters(failure.cls)] if key else options)
    if missing := re.search(r"arguments are required: (.+)", text):
        names = ", ".join(joined(key, name) for name in missing[1].split(", "))
        return f"{names}: no value is given; set it in a --config file or on the command line"
    if valueless := re.search(r"argument (?:-\w/)?--(\S+): expected one argument", text):
        option = failure.option or f"--{valueless[1]}"
        name = option[2:] if option.startswith("--") else valueless[1]
        return f"{name}: expected one argument after {option}"
    return None


def about_code(failure: Failure) -> str | None:
    """A sentence on an import path that a config may not name in this place."""
    text = "\n".join(failure.texts)
    if denied := re.search(r"Importing '(.+?)' is not allowed", text):
        return f"{failure.key}: {denied[1]} may not be named in a config: it could run or read anything"
    if "Unexpected import object" in text:
        what = "expected the import path of a function or a class"
        return f"{failure.key}: {what}, and {shown(failure.value)} is neither"
    return None


def about_a_value(failure: Failure) -> str | None:
    """A sentence on a file, a class or a plain value of the wrong kind."""
    key, typehint, value = failure.key, failure.typehint, failure.value
    if file := re.search(r"File does not exist: '(.+)'", "\n".join(failure.texts)):
        near = nearest(file[1], map(str, Path(file[1]).parent.glob("*")))
        return f"{key}: there is no file {file[1]}{near}"
    if typehint is None and "Unable to load config" in "\n".join(failure.texts):
        return f"{key}: expected settings, or a file with them, got {shown(value)}"
    if "has no attribute 'keys'" in failure.texts[0] and isinstance(value, dict | Namespace):
        return f"{key}.init_args: expected settings, got {shown(value['init_args'])}"
    if typehint is None or not MISMATCH.match(failure.texts[0]):
        return None
    if isinstance(value, NestedArg):
        return f"{key}.{value.key}: {without_a_class(key, failure)}"
    if isinstance(value, dict) and inspect.isclass(typehint):
        outside = [name for name in value if name not in ("class_path", "init_args", "dict_kwargs")]
        if "class_path" not in value:
            prefix = f"{key}.{outside[0]}: " if outside else ""
            return f"{prefix}{without_a_class(key, failure)}"
        if outside:
            return f"{key}.{outside[0]}: the settings of a class stand below its init_args; write it there"
    got = shown(value)
    return f"{key}: expected {all_expected(typehint, got)}, got {got}{nearest(got, names_instead(typehint))}"


MISMATCH = re.compile(
    r"\s*(Expected an? (<|typing\.Literal|dot import path|import path|tuple|instantiatable)"
    r"|Expected '.+' to be a (class|function|subclass)"
    r"|Import path \S+ does not correspond|Unexpected import path format"
    r"|Not a valid subclass|Does not validate)"
)
"""Messages that say no more than the type expected."""


def without_a_class(key: str, failure: Failure) -> str:
    """Half a sentence on settings at a key that names no class."""
    if isinstance(failure.before, str | bool | int | float):
        return f"{key} has settings only where it names a class, and {shown(failure.before)} is none"
    null = failure.before is None and isinstance(failure.value, NestedArg)
    first, *_ = alternatives(failure.typehint, "")
    return f"{key} {'is null' if null else 'names no class'}; set {key} to {first} first"


@contextmanager
def failed_imports_answered() -> Iterator[None]:
    """End with one sentence and exit code 2 if a module that a config names cannot be imported."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if failed_import(error):
            fail(about_a_module(find_failure(error)))
        raise
