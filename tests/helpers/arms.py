"""What an arm of a study changes, thing by thing."""

from collections.abc import Mapping
from typing import Any

TOGETHER = (
    {
        "model.critic",
        "model.critic_lr",
        "model.advantage",
    },  # an advantage and its critic
    {"data.group_size", "data.prompts_per_iteration"},  # groups of another size in as many responses
    {"model.loss.clip_low", "model.loss.clip_high"},  # the two bounds of one clip
    {"data.minibatches", "data.update_epochs"},  # how often a rollout is learned from
    {"model.advantage", "model.rewards.correct.weight"},  # a teacher in place of the reward
)
"""Settings that are one thing: one of them has no meaning without the other."""


def leaves(config: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Every setting by its dotted key; a component's arguments stand under it, its class at `class_path`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        path = key if name == "init_args" else f"{key}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            found |= leaves(value, path)
        else:
            found[path] = value
    return found


def changes(base: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The things that differ: key -> value in the base and in the arm.

    A component of another class is one thing, and each argument that both classes have and that differs is
    another one. One reward in place of another is one thing.
    """
    before, after = leaves(base), leaves(arm)
    swapped = {
        key.removesuffix(".class_path")
        for key in before.keys() | after.keys()
        if key.endswith(".class_path") and before.get(key) != after.get(key)
    }
    for one, other in ((before, after), (after, before)):  # a setting in place of null, without a class
        swapped |= {key for key in one if one[key] is None and any(k.startswith(f"{key}.") for k in other)}
    things: dict[str, tuple[Any, Any]] = {}
    for key in sorted(before.keys() | after.keys()):
        pair = before.get(key), after.get(key)
        owner = next((one for one in sorted(swapped) if f"{key}.".startswith(f"{one}.")), None)
        if owner and key in (owner, f"{owner}.class_path"):
            things[owner] = before.get(f"{owner}.class_path"), after.get(f"{owner}.class_path")
        elif pair[0] != pair[1] and (owner is None or key in before.keys() & after.keys()):
            things[key] = pair
    rewards = [key for key in things if key.startswith("model.rewards.") and None in things[key]]
    if len(rewards) == 2:
        things["model.rewards"] = tuple(str(things.pop(key)) for key in rewards)
    return things


def merged(things: Mapping[str, Any]) -> set[str]:
    """The keys of things, those that are one thing taken for one."""
    keys = set(things)
    for one in TOGETHER:
        if len(keys & one) > 1:
            keys = keys - one | {"+".join(sorted(one))}
    return keys


def gone(things: Mapping[str, tuple[Any, Any]]) -> set[str]:
    """The keys of components that an arm sets to null: another one in their place is no step from it."""
    return {key for key, (before, after) in things.items() if before is not None and after is None}


def too_much(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    """The arms that change several things at once, and what they change; the first arm is the base.

    An arm changes one thing of the base or of an arm before it; or it joins whole arms.
    """
    base, *others = arms
    from_base = {name: changes(arms[base], arms[name]) for name in others}
    found = {}
    for name in others:
        own, earlier = from_base[name].items(), [base, *others[: others.index(name)]]
        one_step = any(
            len(merged(changes(arms[other], arms[name]))) == 1
            and not any(key.startswith(tuple(gone(from_base.get(other, {})))) for key in from_base[name])
            for other in earlier
        )
        parts = [from_base[other].items() for other in others if other != name]
        joined = {item for part in parts if part <= own for item in part}
        if not one_step and joined != set(own):
            found[name] = merged(from_base[name])
    return found
