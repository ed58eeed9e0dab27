"""The differences between the configs of two runs."""

import inspect
import json
import re
from collections.abc import Iterator
from pydoc import ErrorDuringImport, locate
from typing import Any, NamedTuple

from grpo_pl.commands.compare.runs import Run

SEEDS = ("seed_everything", "data.seed")
WITHOUT_EFFECT = (
    *("trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar"),
    *("checkpoint", "ckpt_path", "weights_only", "preemption"),
    *("samples", "curves", "reliability", "metrics", "progress"),
)
"""Settings of a run's folder and output, on which no result depends."""


class Difference(NamedTuple):
    """A setting with different values in two configs, as written on a command line."""

    key: str
    base: str
    other: str

    @property
    def short(self) -> str:
        """`leaf=value`, for the other config."""
        return f"{self.key.rpartition('.')[2]}={self.other}"


def settings(run: Run) -> dict[str, Any]:
    """The settings that a run's result depends on, except its seed: equal for repetitions of one another.

    A path into the run's own folder, or through a folder `seed-<n>` of its own seed, counts as the same. A
    model that `pretrained` names for all is named once.
    """
    folder, model = run.config["trainer"].get("default_root_dir"), run.config.get("pretrained")

    def normal(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: normal(v) for k, v in value.items() if not (k == "pretrained" and model and v == model)
            }
        if isinstance(value, list):
            return [normal(v) for v in value]
        if not isinstance(value, str):
            return value
        if folder and f"{value}/".startswith(f"{folder}/"):
            return f"<run>{value[len(folder) :]}"
        return re.sub(rf"\bseed-{run.place.seed}\b", "seed-<n>", value) if run.place else value

    config = {key: normal(value) for key, value in run.config.items()} | {"pretrained": model}
    for key in (*SEEDS, *WITHOUT_EFFECT):
        group, _, leaf = key.rpartition(".")
        owner = config.get(group) if group else config
        if isinstance(owner, dict):
            owner.pop(leaf, None)
    return config


def fingerprint(run: Run) -> str:
    """A text that is equal for runs with equal settings."""
    return json.dumps(settings(run), sort_keys=True, default=str)


def differences(base: Any, other: Any, key: str = "") -> Iterator[Difference]:
    """The settings that differ; a component of another class is one difference, with its arguments in it."""
    both = isinstance(base, dict) and isinstance(other, dict)
    if both and base.get("class_path") == other.get("class_path"):
        a, b = ((v.get("init_args") or {}) if "class_path" in v else v for v in (base, other))
        for name in dict.fromkeys((*a, *b)):
            yield from differences(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif base != other:
        yield Difference(key, shown(base), shown(other))


def shown(value: Any) -> str:
    """A value in a table: `null`, `0.2`, or `GAE(lam=1)`, with arguments that differ from the defaults."""
    if isinstance(value, dict) and "class_path" in value:
        defaults = _defaults(value["class_path"])
        inside = ", ".join(
            f"{name}={shown(v)}"
            for name, v in (value.get("init_args") or {}).items()
            if name not in defaults or not _same(v, defaults[name])
        )
        return str(value["class_path"]).rpartition(".")[2] + (f"({inside})" if inside else "")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(v)}" for name, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _same(value: Any, default: Any) -> bool:
    return bool(value == (list(default) if isinstance(default, tuple) else default)) or (
        default is inspect.Parameter.empty and value in ("", None)
    )


def _defaults(class_path: str) -> dict[str, Any]:
    """The constructor's arguments and their defaults; empty for a class that is not installed."""
    try:
        cls = locate(class_path)
    except ErrorDuringImport:
        return {}
    if not inspect.isclass(cls):
        return {}
    constructors = [vars(owner).get("__init__") for owner in reversed(cls.__mro__)]
    return {
        name: parameter.default
        for constructor in constructors  # an argument that a class hands on to its base is its own, too
        if inspect.isfunction(constructor)
        for name, parameter in inspect.signature(constructor).parameters.items()
    }
