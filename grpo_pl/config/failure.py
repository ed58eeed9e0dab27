"""Finds the place in a config at which jsonargparse 4.53 failed, from the frames of its exceptions.

Its messages name no entry of a mapping and no index of a list, and list what each member of a union lacks.
"""

import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from jsonargparse._util import NestedArg

from grpo_pl.system.refusal import ArgumentError


class Failure(NamedTuple):
    """The place and what is known of it."""

    key: str = ""
    """As on the command line, with entries and indices: `model.rewards.mine.function`, `model.masks.1`."""
    typehint: Any = None
    """The type expected there."""
    value: Any = None
    """The value that does not fit."""
    before: Any = None
    """The value that earlier configs and options have set there."""
    cls: Any = None
    """The class, named by the config, whose arguments are refused."""
    texts: tuple[str, ...] = ()
    """The messages of the exceptions, innermost first."""
    list_key: str = ""
    """The list of which an option names an entry, as `--model.masks.1.share` does."""
    option: str = ""
    """The option on the command line that lacks its value."""
    module: str = ""
    """Says which import path leads to a module that raises on its import, and what it raises."""
    refusal: ArgumentError | None = None
    """What our own code refuses there."""


def find_failure(error: BaseException) -> Failure:
    """The place at which an exception of the parser arose."""
    errors = list(chain(error))
    modules = [
        f"{path}: its module cannot be imported ({type(one).__name__}: {one})"
        for one in errors
        if (path := failed_import(one))
    ]
    refusal, texts = refusal_of(error), tuple(map(str, reversed(errors)))
    failure, group = Failure(texts=texts, module="".join(modules[:1]), refusal=refusal), ""
    for frame in distinct_frames(errors):
        name, local = frame.f_code.co_name, frame.f_locals
        if name == "_check_type":
            failure, group = failure._replace(key=joined(failure.key, local["self"].dest)), ""
        elif name == "_load_config":  # of a group: an option inside it has its full name itself
            failure, group = failure._replace(value=local["value"]), local["self"].dest
        elif name == "consume_optional":
            failure = failure._replace(option=local["option_string"])
        elif name == "adapt_typehints":
            failure = stepped(failure, local)
    return failure._replace(key=joined(failure.key, group))


def stepped(failure: Failure, local: dict[str, Any]) -> Failure:
    """The place after one more frame of `adapt_typehints`, which checks a value against a type."""
    value = local.get("val_input", local["val"])
    if isinstance(value, NestedArg) and re.match(r"\d+\b", value.key):
        entry = re.fullmatch(r"(.+)\.\d+", failure.key)  # jsonargparse takes it for an option of the last one
        if entry or any(get_origin(one) in SEQUENCES for one in get_args(local["typehint"])):
            return failure._replace(list_key=entry[1] if entry else failure.key, value=value)
    step = local.get("k", local.get("n"))
    return failure._replace(
        key=failure.key if step is None else joined(failure.key, str(step)),
        typehint=local["typehint"],
        value=value,
        before=local["prev_val"],
        cls=local.get("val_class"),
    )


def refusal_of(error: BaseException | None) -> ArgumentError | None:
    """The innermost of our own errors among the causes; jsonargparse repeats it with text of its own."""
    found = None
    while error is not None:
        found = error if isinstance(error, ArgumentError) else found
        error = error.__cause__ or error.__context__
    return found


def joined(*parts: str) -> str:
    """A dotted key."""
    return ".".join(filter(None, parts))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes, down to the place that the config has to change."""
    while error is not None:
        yield error
        error = cause(error)


def cause(error: BaseException) -> BaseException | None:
    """What led to an exception; None if no member of a union says more than that the value is none of it."""
    if not str(error).startswith("Does not validate against any of the Union subtypes"):
        return error.__cause__ or error.__context__
    union = [frame for frame in frames(error) if frame.f_code.co_name == "adapt_typehints"][-1].f_locals
    in_a_class = isinstance(union["val"], NestedArg) and not isinstance(union["prev_val"], list)
    members = zip(union["sorted_subtypes"], union["vals"], strict=True)
    tried = [one for member, one in members if not (in_a_class and get_origin(member) in SEQUENCES)]
    nearest = max(tried, key=depth)
    return nearest if depth(nearest) > REFUSED_ITSELF else None


REFUSED_ITSELF = 2
"""`depth` where a member of a union refused the value itself: the frames of the union and of the member."""
SEQUENCES = list, Iterable, Sequence
"""jsonargparse takes `--trainer.logger.name` for an option of a list's last entry, too."""


def depth(error: BaseException) -> int:
    """How far a member of a union agreed with a value; one more if a name of the value led to no object."""
    errors = list(chain(error))
    names = [frame.f_code.co_name for frame in distinct_frames(errors)]
    return names.count("adapt_typehints") + (not isinstance(errors[-1], ValueError))


def distinct_frames(errors: list[BaseException]) -> Iterator[FrameType]:
    """The frames of jsonargparse and argparse that exceptions passed, outermost first, each once."""
    seen: set[int] = set()
    for frame in (frame for error in errors for frame in frames(error)):
        ours = frame.f_globals["__name__"].partition(".")[0] in ("jsonargparse", "argparse")
        if ours and id(frame) not in seen:
            seen.add(id(frame))
            yield frame
            if get_origin(frame.f_locals.get("typehint")) is Literal:
                return  # beyond it jsonargparse compares the value with the types of the choices


def frames(error: BaseException) -> list[FrameType]:
    """The frames of an exception's traceback, outermost first."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def failed_import(error: BaseException) -> str | None:
    """The import path, named in a config, whose module raised the exception; None for other exceptions."""
    names = [frame.f_code.co_name for frame in frames(error)]
    paths = [frame.f_locals["name"] for frame in frames(error) if is_import(frame)]
    by_its_code = "<module>" in names[names.index("import_object") :] if paths else False
    lookup = isinstance(error, ValueError | ImportError | AttributeError)  # jsonargparse finds nothing there
    return paths[-1] if paths and (by_its_code or not lookup) else None


def is_import(frame: FrameType) -> bool:
    """Whether jsonargparse imports a path of the config in this frame."""
    return frame.f_code.co_name == "import_object" and frame.f_globals["__name__"] == "jsonargparse._util"
