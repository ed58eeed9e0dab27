"""The needs of a run, from its requirements: memory of each phase, passes of each model."""

from dataclasses import dataclass, replace

from grpo_pl.commands.plan.formulas import (
    FLOAT32,
    Rows,
    activation_bytes,
    cast_bytes,
    forward_bytes,
    head_bytes,
)
from grpo_pl.commands.plan.requirements import Model, Requirements
from grpo_pl.system.memory import GIB

PROCESS_BYTES = int(0.44 * GIB)
"""Python with torch, Lightning and grpo_pl, as `tools/measure_overhead.py` found it; on a GPU machine this is
host memory and does not count."""
CUDA_BYTES = int(0.5 * GIB)
"""A CUDA context with its libraries: between 0.3 and 0.6 GiB by model of GPU; not measured by us."""
HEAP_HOLES = 0.42
"""Memory lost in glibc's heap between the blocks of a backward, as a share of them. A process with
SmolLM2-135M alone, in bf16-mixed and rows of 256 tokens, grew by 1.49 GiB for 1.05 GiB of tensors; by 1.05
GiB with MALLOC_MMAP_THRESHOLD_=262144, which gives every large tensor pages of its own."""
KEPT_ASIDE = 2
"""Gradients that `gradient_terms` keeps beside the one that a backward makes: the whole, and a term's."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The passes of a model over a whole rollout in one iteration."""

    model: str
    score: float
    """Less than 1 where the first optimizer step gives its own old log-probabilities."""
    update: int
    """Forwards, those that gradient checkpointing repeats among them."""
    backward: int


def resident_bytes(run: Requirements) -> int:
    """Memory held through all phases once training has begun: gradients live until the next backward."""
    models = sum(model.bytes for model in run.models)
    return overhead_bytes(run) + models + run.bucket_bytes + run.support_bytes


def overhead_bytes(run: Requirements) -> int:
    """The process itself, including the engine's libraries."""
    return (PROCESS_BYTES if run.on_cpu else CUDA_BYTES) + run.engine.libraries


def update_bytes(run: Requirements) -> dict[str, int]:
    """The terms of what a micro-batch's backward needs, each summed over the trained models."""
    learning = [model.network for model in run.models if model.trained and model.network is not None]
    terms = {
        "activations": sum(activation_bytes(n, run.rows(n, run.micro_batches)) for n in learning),
        "autocast weights": sum(cast_bytes(n) for n in learning),
        "logits": sum(head_bytes(n, run.with_entropy) for n in learning),
    }
    if run.teacher_copies:
        terms["teacher"] = teacher_bytes(run)
    if run.support_bytes:  # logits and their gradient in float32, to choose from
        terms["logits"] += sum(2 * FLOAT32 * n.architecture.vocabulary * n.chunk_tokens for n in learning)
    holes = int(HEAP_HOLES * sum(terms.values())) if run.on_cpu else 0
    aside = KEPT_ASIDE * sum(model.gradient_bytes for model in run.models) if run.measures_terms else 0
    return terms | {"heap holes": holes, "gradients aside": aside}


def teacher_bytes(run: Requirements) -> int:
    """The reference's pass over a micro-batch, and the whole chunks of logits that the comparison holds."""
    networks = {model.name: model.network for model in run.models if model.network is not None}
    policy = networks["policy"]
    reference = networks.get("reference", policy)  # which is the policy without its adapters
    chunk = FLOAT32 * policy.architecture.vocabulary * policy.chunk_tokens
    of_pass = forward_bytes(reference, run.rows(reference, run.micro_batches), with_head=False)
    return of_pass + run.teacher_copies * chunk


def score_bytes(run: Requirements) -> int:
    """The passes without gradient; autocast keeps copies of trained weights alone."""
    passes, casts, rewards = [0], 0, [0]
    for model in run.models:
        network = model.network
        if network is None:
            continue
        if model.name.startswith("rewards."):
            longest = run.sequence_tokens
            tokens = max(longest, min(run.reward_tokens, run.responses * longest))
            rewards.append(forward_bytes(network, Rows(-(-tokens // longest), longest), with_head=False))
        else:
            passes.append(forward_bytes(network, run.rows(network, run.micro_batches), with_head=True))
            casts += cast_bytes(network) if model.trained else 0
    return max(casts + max(passes), *rewards)


def phases(run: Requirements) -> dict[str, int]:
    """The most bytes in each phase of an iteration; a sleeping engine holds none while the policy learns."""
    held, engine = resident_bytes(run), run.engine.weights + run.engine.cache
    resting = 0 if run.engine.sleeps else engine
    return {
        "engine start": overhead_bytes(run) + engine + run.engine.sampling,
        "sync": held + (run.engine.weights if run.engine.sleeps else engine),
        "generate": held + engine + run.engine.sampling,
        "score": held + resting + score_bytes(run),
        "update": held + resting + sum(update_bytes(run).values()),
        "checkpoint": held + resting,
    }


def peak(run: Requirements) -> tuple[str, int]:
    """The phase that needs most, and its bytes."""
    return max(phases(run).items(), key=lambda phase: phase[1])


def smallest_that_fits(run: Requirements) -> int | None:
    """The fewest micro-batches of an optimizer step that fit the free memory; None if no number does."""
    fewest = range(1, run.units + 1)
    fitting = (k for k in fewest if peak(replace(run, micro_batches=k))[1] <= run.free_bytes)
    return next(fitting, None)


def passes(run: Requirements) -> list[Passes]:
    """Forwards and backwards of each model over one iteration's rollout."""
    return [passes_of(run, model) for model in run.models]


def passes_of(run: Requirements, model: Model) -> Passes:
    """The passes of one model; a trained model scores at most once and learns in every epoch of updates."""
    if model.name == "reference" and run.teacher_copies:
        return Passes(model=model.name, score=0.0, update=run.update_epochs, backward=0)
    epochs = run.update_epochs if model.trained else 0
    again = 2 if model.network is not None and model.network.checkpointing else 1
    spares = model.trained and epochs == 1 and not run.scores_first
    score = 1 - 1 / run.minibatches if spares else 1.0
    return Passes(model=model.name, score=score, update=epochs * again, backward=epochs)
