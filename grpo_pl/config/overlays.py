"""Lays mappings of a config over one another by name, whether a file or an option gives them.

jsonargparse 4.53 replaces a whole mapping where a file gives one, and adds to it where an option names an
entry; a list of the same length as the one before inherits settings of its entries. Patched here: a mapping
always adds, a list always replaces.
"""

from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin

from jsonargparse import Namespace, _typehints
from jsonargparse._actions import _ActionConfigLoad
from jsonargparse._util import NestedArg

from grpo_pl.system.refusal import ArgumentError

ALL = "*"
"""As a name whose value is null: every entry of the earlier mapping."""
NULLS = "null", "Null", "NULL", "~"
"""How YAML writes null."""
FILE = "__path__"
"""The entry in which jsonargparse keeps the file that a mapping was read from."""


def laid_over(
    before: Mapping[str, Any] | None, over: Mapping[str, Any], null_removes: bool
) -> dict[str, Any]:
    """The entries of a mapping with another one over it.

    An entry is added, or replaces the one of its name. A removal takes away one entry, or all; an empty
    mapping leaves none. Removals stay where the earlier mapping is unknown, for when it is known.

    Args:
        before: The earlier mapping; None if there is none or it is unknown.
        over: The later mapping.
        null_removes: Whether null removes an entry, and is not a value of it.

    Raises:
        ArgumentError: If an entry to remove is not there.
    """
    if before is None or not over:
        return dict(over)
    removed = removals(over, null_removes)
    entries = {} if ALL in removed else dict(before)
    for name in sorted(removed - {ALL}):
        if entries.pop(name, None) is None:
            there = f"only {', '.join(map(str, entries))}" if entries else "none"
            raise ArgumentError(f"{name}: null removes an entry, and there is {there}: leave it out")
    return entries | {name: value for name, value in over.items() if name not in removed}


def removals(entries: Mapping[str, Any], null_removes: bool) -> set[str]:
    """The names of a mapping that say what to remove."""
    return {name for name, value in entries.items() if value is None and (null_removes or name == ALL)}


def is_mapping(typehint: Any) -> bool:
    """Whether a type is that of a mapping."""
    return (get_origin(typehint) or typehint) in _typehints.mapping_origin_types


def is_list(typehint: Any) -> bool:
    """Whether a type is that of a list."""
    return get_origin(typehint) in _typehints.sequence_origin_types


def refuses_null(typehint: Any) -> bool:
    """Whether null is no value of the entries of a mapping with this type."""
    *_, entry = get_args(typehint) or (Any,)
    return not _typehints.accepts_any_value(entry) and NoneType not in (entry, *get_args(entry))


def as_mapping(value: Any) -> Any:
    """What an option says of one entry, `--model.rewards.mine X`, as the mapping that says it."""
    if isinstance(value, NestedArg):
        name, _, inside = value.key.partition(".")
        entries = {name: {inside: value.val} if inside else value.val}
    elif isinstance(value, Namespace):  # an option inside an entry of another mapping
        entries = vars(value)
    else:
        return value
    return {name: None if entry in NULLS else entry for name, entry in entries.items()}


def adapt(
    value: Any,
    typehint: Any,
    serialize: bool = False,
    instantiate_classes: bool = False,
    prev_val: Any = None,
    **others: Any,
) -> Any:
    """What jsonargparse makes of a value of a type, where mappings add to `prev_val` and lists replace it."""
    others |= {"serialize": serialize, "instantiate_classes": instantiate_classes}
    if is_list(typehint) and isinstance(value, list) and not others.get("append"):
        prev_val = None
    if serialize or instantiate_classes or not is_mapping(typehint):
        return _adapt(value, typehint, prev_val=prev_val, **others)
    over, null_removes = as_mapping(value), refuses_null(typehint)
    if not isinstance(over, Mapping):
        return _adapt(value, typehint, prev_val=prev_val, **others)
    before = {k: v for k, v in prev_val.items() if k != FILE} if isinstance(prev_val, Mapping) else None
    entries = laid_over(before, over, null_removes)
    for_later = removals(entries, null_removes)
    values = {name: entry for name, entry in entries.items() if name not in for_later}
    anew = not before or ALL in removals(over, null_removes)
    made = _adapt(values, typehint, prev_val=None if anew else before, **others)
    return made | dict.fromkeys(for_later) if for_later else made


_adapt: Any = _typehints.adapt_typehints
_typehints.adapt_typehints = adapt  # type: ignore[assignment]


def load_over(group: _ActionConfigLoad, *arguments: Any, **named: Any) -> Any:
    """Takes an option of a whole group, as `--model FILE`, and lays its mappings over those before it."""
    if arguments:
        parser, config, value, *rest = arguments
        loaded = group._load_config(value, parser)  # type: ignore[no-untyped-call]
        arguments = parser, config, parser._apply_actions(loaded, group.dest, config), *rest
    return _load(group, *arguments, **named)


_load: Any = _ActionConfigLoad.__call__
_ActionConfigLoad.__call__ = load_over  # type: ignore[method-assign, assignment]
