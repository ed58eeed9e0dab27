"""Settles the open types of a config for a machine: `trainer.precision` and each `dtype` that is `auto`."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT

from grpo_pl.system.precision import (
    AUTO,
    PRECISIONS,
    WORTH,
    DType,
    Rates,
    chosen_dtype,
    device_here,
    measured_rates,
)

PRECISION = "trainer.precision"
COMPUTE_IN: dict[str, DType] = {precision: dtype for dtype, precision in PRECISIONS.items()}


class Trainer(pl.Trainer):
    """Lightning's Trainer, whose precision may be left open.

    Args:
        precision: Lightning's, or `auto`: bf16-mixed where the device computes bfloat16 well, 32-true where
            it does not (16-mixed where a GPU has nothing else).
    """

    def __init__(self, *, precision: Literal["auto"] | _PRECISION_INPUT | None = None, **kwargs: Any) -> None:
        super().__init__(
            precision=PRECISIONS[chosen_dtype("auto")] if precision == "auto" else precision, **kwargs
        )


class Setting(NamedTuple):
    """A value of the config and its place."""

    key: str
    """As the config nests it, `init_args` and all."""
    owner: Any
    name: str

    @property
    def option(self) -> str:
        """The key on the command line."""
        return self.key.replace(".init_args", "")

    @property
    def value(self) -> Any:
        """Its current value."""
        return self.owner[self.name]


def types_of(owner: Any, key: str = "") -> Iterator[Setting]:
    """Every `dtype` in a config."""
    items = vars(owner) if isinstance(owner, Namespace) else owner
    if not isinstance(items, dict):
        return
    for name, value in items.items():
        where = f"{key}.{name}" if key else name
        if name == "dtype":
            yield Setting(where, owner, name)
        else:
            yield from types_of(value, where)


def left_open(config: Namespace) -> list[Setting]:
    """The settings that are `auto`, the Trainer's first."""
    precision = Setting(PRECISION, config.trainer, "precision")
    return [each for each in (precision, *types_of(config)) if each.value == AUTO]


def settle(config: Namespace, before: Mapping[str, Any]) -> list[str]:
    """Give each open setting its value, in place: the resumed run's, else the one that fits this machine.

    Engines and reward models take the trainer's type. Explicit settings stay. Returns lines to print.

    Args:
        config: The whole config.
        before: The settings of the resumed run, nested as in its `config.yaml`; empty for a new one.
    """
    opened, explicit = left_open(config), explicit_types(config)
    if not (opened or explicit):
        return []
    rates = measured_rates(device_of(config.trainer.accelerator).type)
    lines = [warning for each in explicit if (warning := too_slow(*each, rates))]
    if config.trainer.precision == AUTO:
        config.trainer.precision = at(before, PRECISION) or PRECISIONS[rates.fitting]
    dtype = trainer_dtype(config)
    for each in opened:
        if each.key != PRECISION:
            each.owner[each.name] = at(before, each.key) or dtype
    if opened:
        lines.append(summary(opened, dtype, bool(before), rates))
    return lines


def summary(opened: list[Setting], dtype: DType, goes_on: bool, rates: Rates) -> str:
    """The values that the open settings got, and why."""
    what = ", ".join(f"{each.option} {each.value}" for each in opened)
    if goes_on:
        sentence = f"Computes in {dtype}, as the run began ({what})"
        if dtype == rates.fitting:
            return f"{sentence}."
        cost = f"products take {rates.slower(dtype):.2g} times as long as in {rates.fitting}"
        return f"! {sentence}: on this machine {cost}; --resume never begins anew in that."
    if dtype != rates.fitting:
        return f"Computes in {dtype}, as the trainer does ({what})."
    return f"Computes in {rates.reason} ({what})."


def explicit_types(config: Namespace) -> list[tuple[str, str, DType]]:
    """Key, value and type of explicit settings: the Trainer's precision, an engine's 16 bits."""
    precision = config.trainer.precision
    trainers = [(PRECISION, precision, COMPUTE_IN[precision])] if precision in COMPUTE_IN else []
    engines = [each for each in types_of(config.get("data"), "data") if each.value in ("bfloat16", "float16")]
    return [*trainers, *((each.option, each.value, each.value) for each in engines)]


def too_slow(key: str, value: str, dtype: DType, rates: Rates) -> str | None:
    """A warning if an explicit type is much slower than the fitting one."""
    factor = rates.slower(dtype)
    if factor < WORTH:
        return None
    fitting = f"in {rates.fitting}, which auto takes"
    return f"! {key}={value}: here products take {factor:.2g} times as long as {fitting}."


def trainer_dtype(config: Namespace) -> DType:
    """The trainer's type for products: its strategy's, if it has one, else its precision's."""
    strategy = config.trainer.strategy
    own = strategy.get("init_args.dtype") if isinstance(strategy, Namespace) else None
    return cast(DType, own or COMPUTE_IN.get(str(config.trainer.precision), "float32"))


def device_of(accelerator: Any) -> torch.device:
    """The device of a Trainer with this accelerator."""
    return torch.device("cpu") if accelerator == "cpu" else device_here()


def at(settings: Mapping[str, Any], key: str) -> Any:
    """A value of nested settings; None if there is none."""
    value: Any = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return None if value == AUTO else value
