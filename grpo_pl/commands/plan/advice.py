"""Warnings about settings that are likely unintended: one sentence each, with the key and the fix."""

from collections.abc import Iterator

from grpo_pl.commands.plan.estimate import peak, smallest_that_fits, update_bytes
from grpo_pl.commands.plan.formulas import Network
from grpo_pl.commands.plan.requirements import Requirements
from grpo_pl.models.tree_attention import TREE
from grpo_pl.system.memory import GIB


def warnings(run: Requirements) -> list[str]:
    """The settings of this run that are likely unintended."""
    network, too_large = run.models[0].network, does_not_fit(run)
    sentences = [] if too_large is None else [too_large]
    if network is not None:
        sentences += about_the_policy(run, network)
    sentences += about_the_rollout(run)
    sentences += about_the_cache(run)
    if run.idle_reference:
        sentences.append(
            "model.kl=null, so that model.reference is not built: set model.kl to KLInLoss if the policy is "
            "to stay near it, or model.reference to null"
        )
    if network is not None:
        sentences += about_activations(run, network)
    if not run.on_cpu and not run.engine.sleeps and run.engine.cache and peak(run)[0] == "update":
        held = run.engine.weights + run.engine.cache
        sentences.append(
            f"data.engine.sleep=false keeps {held / GIB:.1f} GiB on the GPU while the policy learns, where "
            "the peak is: set it to true"
        )
    return sentences


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


def about_the_policy(run: Requirements, policy: Network) -> Iterator[str]:
    """Computed padding, and prompts read more than once."""
    if policy.attention != TREE:
        yield (
            f"model.policy.attention={policy.attention} computes the padding, and each prompt once for every "
            "response: set it to null, which is a tree where the model can"
        )
    elif not run.keep_groups and run.group_size > 1:
        yield (  # a row shares a prompt only among the responses of one micro-batch
            "data.keep_groups=false scatters the responses to a prompt, which could otherwise be read once "
            "for all of them: set it to true"
        )


def about_the_rollout(run: Requirements) -> Iterator[str]:
    """An engine that could decode more sequences than there ever are, and a clip that never acts."""
    most = max(run.responses, run.val_prompts)
    if run.engine.max_sequences > most:
        yield (
            f"data.engine.max_sequences={run.engine.max_sequences} is more than the {most} sequences that "
            "there are at once: raise data.prompts_per_iteration or data.group_size, or set it to null"
        )
    if run.minibatches * run.update_epochs == 1 and run.loss_name is not None:
        yield (  # in the first optimizer step on a rollout every ratio is 1
            f"data.minibatches=1 and data.update_epochs=1 leave every ratio at 1, so that model.loss "
            f"{run.loss_name} never clips: raise one of them, or set model.loss to Reinforce"
        )


def about_the_cache(run: Requirements) -> Iterator[str]:
    """A KV cache that rollouts or validation overfill, or with more than a GiB that nothing can fill."""
    cache, needed = run.engine.cache, run.engine.cache_needed
    filled = max(needed, run.val_cache_bytes)
    if needed > cache:
        yield (
            f"data.engine.kv_cache_gib={cache / GIB:.2g} is less than the {needed / GIB:.2g} GiB that a "
            "rollout may fill, so that responses are put off and prompts read again: set it to "
            f"{rounded_up(needed)}"
        )
    if cache - filled >= GIB:
        yield (
            f"data.engine.kv_cache_gib={cache / GIB:.2g} is more than the {filled / GIB:.2g} GiB that "
            f"rollouts and validation may fill: set it to {rounded_up(filled)}"
        )
    if run.val_cache_bytes > max(cache, needed):
        yield (
            f"data.val_prompts_per_batch={run.val_prompts} may fill {run.val_cache_bytes / GIB:.2g} GiB of a "
            f"cache of {cache / GIB:.2g} GiB: set it to "
            f"{max(1, run.val_prompts * cache // run.val_cache_bytes)}"
        )


def about_activations(run: Requirements, policy: Network) -> Iterator[str]:
    """Activations or logits that are most of the memory at the peak and could be less."""
    (phase, needed), terms = peak(run), update_bytes(run)
    if phase == "update" and terms["activations"] >= needed / 2 and not policy.checkpointing:
        yield (
            f"the activations of a micro-batch are {terms['activations'] / GIB:.1f} of the "
            f"{needed / GIB:.1f} GiB at the peak: raise trainer.accumulate_grad_batches, or set "
            "model.policy.gradient_checkpointing to true"
        )
    if terms["logits"] >= max(GIB, sum(terms.values()) / 2):
        yield (
            f"model.policy.chunk_tokens={policy.chunk_tokens} rows of logits need "
            f"{terms['logits'] / GIB:.1f} GiB: set it lower"
        )


def rounded_up(needed: int) -> float:
    """Bytes as GiB, up to the next tenth."""
    return -(-needed * 10 // GIB) / 10
