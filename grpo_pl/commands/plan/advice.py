"""What is likely not meant: one sentence each, with the key and the fix."""

from collections.abc import Callable

from grpo_pl.commands.plan.estimate import peak, smallest_that_fits, update_bytes
from grpo_pl.commands.plan.requirements import Model, Requirements
from grpo_pl.system.memory import GIB

SHORT = 512
"""Tokens of a sequence up to which eager attention was the faster one on a CPU."""
LOSES_UPDATES_BELOW = 1e-4
"""In bfloat16 a weight of 0.02 moves by 1e-4 or not at all, and a step of Adam is about the learning rate."""


def policy(run: Requirements) -> Model:
    """The model that is trained first of all."""
    return run.models[0]


def does_not_fit(run: Requirements) -> str | None:
    """The phase at the peak needs more than is free."""
    phase, needed = peak(run)
    if needed <= run.free_bytes:
        return None
    fits = smallest_that_fits(run)
    return f"the phase {phase} needs {needed / GIB:.1f} GiB and {run.free_bytes / GIB:.1f} GiB are free: " + (
        f"set trainer.accumulate_grad_batches to {fits}"
        if fits
        else "no trainer.accumulate_grad_batches fits; set model.policy to LoRA, or --pretrained to a "
        "smaller model"
    )


def updates_lost(run: Requirements) -> str | None:
    """Weights of 16 bits round small updates away."""
    network = policy(run).network
    if run.adapters or network is None or network.weight_bytes > 2:
        return None
    if run.learning_rate >= LOSES_UPDATES_BELOW:
        return None
    return (
        f"model.policy.dtype has 16 bits, which round updates of model.optimizer.lr="
        f"{run.learning_rate:g} away: set it to float32; trainer.precision says what it computes in"
    )


def padding_computed(run: Requirements) -> str | None:
    """Padded rows cost a CPU most, and read a prompt once for each of its responses."""
    network = policy(run).network
    if not run.on_cpu or network is None or network.row_tokens is not None:
        return None
    return (
        "model.policy.row_tokens=null computes the padding, and each prompt once for every response: "
        f"set it to {max(256, -(-run.sequence_tokens // 32) * 32)} and data.keep_groups to true"
    )


def slow_attention(run: Requirements) -> str | None:
    """For short sequences on a CPU the explicit product is the faster attention."""
    if not run.on_cpu or run.attention == "eager" or run.sequence_tokens > SHORT:
        return None
    return (
        f"model.policy.attention={run.attention}: on a CPU eager is about 1.5 times as fast for sequences of "
        f"{run.sequence_tokens} tokens: set it to eager"
    )


def prompts_scattered(run: Requirements) -> str | None:
    """Packed rows share a prompt only among responses of one micro-batch."""
    network = policy(run).network
    if network is None or network.row_tokens is None or run.keep_groups or run.group_size == 1:
        return None
    return (
        "data.keep_groups=false scatters the responses to a prompt, which model.policy.row_tokens could "
        "otherwise read once for all of them: set it to true"
    )


def engine_not_full(run: Requirements) -> str | None:
    """An engine that could decode more sequences at once than there ever are."""
    most = max(run.responses, run.val_prompts)
    if run.engine.max_sequences <= most:
        return None
    return (
        f"data.engine.max_sequences={run.engine.max_sequences} is more than the {most} sequences that there "
        "are at once: raise data.prompts_per_iteration or data.group_size, or set it to null"
    )


def clip_never_acts(run: Requirements) -> str | None:
    """In the first optimizer step on a rollout every ratio is 1."""
    if run.minibatches * run.update_epochs > 1 or run.loss_name is None:
        return None
    return (
        f"data.minibatches=1 and data.update_epochs=1 leave every ratio at 1, so that model.loss "
        f"{run.loss_name} never clips: raise one of them, or set model.loss to Reinforce"
    )


def cache_too_small(run: Requirements) -> str | None:
    """Where the cache is full, sequences are put off and read again."""
    if run.engine.cache_needed <= run.engine.cache:
        return None
    return (
        f"data.engine.kv_cache_gib={run.engine.cache / GIB:.2g} is less than the "
        f"{run.engine.cache_needed / GIB:.2g} GiB that a rollout may fill, so that responses are put off and "
        f"prompts read again: set it to {rounded_up(run.engine.cache_needed)}"
    )


def cache_too_large(run: Requirements) -> str | None:
    """More than a GiB of the cache that nothing can fill."""
    needed = max(run.engine.cache_needed, run.val_cache_bytes)
    if run.engine.cache - needed < GIB:
        return None
    return (
        f"data.engine.kv_cache_gib={run.engine.cache / GIB:.2g} is more than the {needed / GIB:.2g} GiB that "
        f"rollouts and validation may fill: set it to {rounded_up(needed)}"
    )


def validation_too_large(run: Requirements) -> str | None:
    """Validation prompts at once that training's cache does not hold."""
    if run.val_cache_bytes <= max(run.engine.cache, run.engine.cache_needed):
        return None
    fitting = max(1, run.val_prompts * run.engine.cache // run.val_cache_bytes)
    return (
        f"data.val_prompts_per_batch={run.val_prompts} may fill {run.val_cache_bytes / GIB:.2g} GiB of a "
        f"cache of {run.engine.cache / GIB:.2g} GiB: set it to {fitting}"
    )


def reference_not_built(run: Requirements) -> str | None:
    """A reference that nothing compares with."""
    if not run.idle_reference:
        return None
    return (
        "model.kl=null, so that model.reference is not built: set model.kl to KLInLoss if the policy is to "
        "stay near it, or model.reference to null"
    )


def activations_at_the_peak(run: Requirements) -> str | None:
    """Activations that are most of the peak, and that could be computed again."""
    network, phase = policy(run).network, peak(run)
    activations = update_bytes(run)["activations"]
    if phase[0] != "update" or activations < phase[1] / 2 or network is None or network.checkpointing:
        return None
    return (
        f"the activations of a micro-batch are {activations / GIB:.1f} of the {phase[1] / GIB:.1f} GiB at "
        "the peak: raise trainer.accumulate_grad_batches, or set model.policy.gradient_checkpointing to true"
    )


def logits_at_the_peak(run: Requirements) -> str | None:
    """Chunks of logits that are most of what a micro-batch needs."""
    network, terms = policy(run).network, update_bytes(run)
    if network is None or terms["logits"] < max(GIB, sum(terms.values()) / 2):
        return None
    return (
        f"model.policy.chunk_tokens={network.chunk_tokens} rows of logits need {terms['logits'] / GIB:.1f} "
        "GiB: set it lower"
    )


def engine_awake(run: Requirements) -> str | None:
    """An engine that keeps the GPU's memory while the policy learns."""
    if run.on_cpu or run.engine.sleeps or not run.engine.cache or peak(run)[0] != "update":
        return None
    held = run.engine.weights + run.engine.cache
    return (
        f"data.engine.sleep=false keeps {held / GIB:.1f} GiB on the GPU while the policy learns, where the "
        "peak is: set it to true"
    )


ADVICE: tuple[Callable[[Requirements], str | None], ...] = (
    does_not_fit,
    updates_lost,
    padding_computed,
    slow_attention,
    prompts_scattered,
    engine_not_full,
    clip_never_acts,
    cache_too_small,
    cache_too_large,
    validation_too_large,
    reference_not_built,
    activations_at_the_peak,
    logits_at_the_peak,
    engine_awake,
)
"""In the order in which they are said."""


def rounded_up(needed: int) -> float:
    """Bytes as GiB, up to the next tenth."""
    return -(-needed * 10 // GIB) / 10


def warnings(run: Requirements) -> list[str]:
    """What is likely not meant in this run."""
    return [sentence for advise in ADVICE if (sentence := advise(run)) is not None]
