"""The speed of matrix products by dtype, for the trainer and for the engine."""

from jsonargparse import Namespace

from grpo_pl.commands.doctor.findings import Finding, good, warn_if
from grpo_pl.config.open_types import device_of, explicit_types, too_slow
from grpo_pl.rollout.vllm import with_vllm
from grpo_pl.system.output import captured_output
from grpo_pl.system.precision import Rates, device_here, measured_rates


def trainers_products() -> Finding:
    """Both types as the trainer multiplies them, and the one that `auto` takes."""
    return products("products", measured_rates(device_here().type))


def engines_products() -> Finding:
    """Both types in the linear layers of vLLM on a CPU, which has kernels of its own."""
    with captured_output():
        rates = measured_rates("cpu", with_vllm)
    return products("engine's products", rates)


def products(check: str, rates: Rates) -> Finding:
    """Both types, and which is faster."""
    unit = "GFLOP/s a thread" if rates.device == "cpu" else "GFLOP/s"
    measured = f"float32 {rates.float32:.0f}, bfloat16 {rates.bfloat16:.0f} {unit}"
    numbers = {"float32": rates.float32, "bfloat16": rates.bfloat16}
    return good(check, f"{measured}; auto takes {rates.reason}", **numbers)


def types(settings: Namespace) -> Finding:
    """Whether a config computes in the type that the machine multiplies fastest."""
    rates = measured_rates(device_of(settings.trainer.accelerator).type)
    explicit = explicit_types(settings)
    slow = [warning.strip("! .") for each in explicit if (warning := too_slow(*each, rates))]
    found = "; ".join(slow) or ", ".join(f"{key} {value}" for key, value, _ in explicit) or "float32"
    return warn_if(bool(slow), "types", found, "set trainer.precision and data.engine.dtype to auto")
