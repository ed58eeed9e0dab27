"""Reads the numbers that a run's needs depend on from components that have loaded nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import psutil
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from grpo_pl.callbacks.gradient_terms import GradientTerms
from grpo_pl.commands.plan.formulas import (
    DENSE_COPIES,
    DENSE_COPIES_OF_JSD,
    FLOAT32,
    Network,
    Rows,
    tree_of,
)
from grpo_pl.datamodule import RolloutDataModule, connect
from grpo_pl.functional import forward_kl, reverse_kl
from grpo_pl.losses import PolicyLoss
from grpo_pl.models import LanguageModel, RewardModel, ValueModel
from grpo_pl.models.architecture import Architecture
from grpo_pl.models.full_weights import tensor_bytes
from grpo_pl.models.heads import Float32Linear
from grpo_pl.models.loading import load_config, without_weights
from grpo_pl.models.tree_attention import TREE
from grpo_pl.module import PolicyOptimization
from grpo_pl.rollout.engine import Demand, EngineMemory
from grpo_pl.rollout.support import support_bytes
from grpo_pl.training.optimization import OptimizerFactory
from grpo_pl.training.ranks import data_ranks, num_shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as one rank holds it; weights that it shares with a model before it count there."""

    name: str
    parameters: int
    parameter_bytes: int
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    network: Network | None = None
    """None for a head on the policy's states, and for the policy without its adapters."""

    @property
    def bytes(self) -> int:
        """The memory that it occupies throughout."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def trained(self) -> bool:
        """Whether it has gradients."""
        return self.gradient_bytes > 0


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Everything that decides memory and passes of a run, on one rank."""

    on_cpu: bool
    free_bytes: int
    """Free memory of the device, or this rank's share of the machine's."""
    models: tuple[Model, ...]
    engine: EngineMemory
    prompts: int
    """A rank's, in one iteration."""
    group_size: int
    prompt_tokens: int
    """Tokens of the longest prompt."""
    response_tokens: int
    minibatches: int
    update_epochs: int
    micro_batches: int
    keep_groups: bool
    scores_first: bool
    """Whether something asks for scores of the trained models before the first step."""
    val_prompts: int
    val_cache_bytes: int
    """Bytes of the engine's cache that a validation batch fills."""
    reward_tokens: int
    """The most tokens that a reward model reads at once."""
    with_entropy: bool
    measures_terms: bool
    """Whether `gradient_terms` keeps gradients aside."""
    loss_name: str | None
    """None for a loss that never clips."""
    idle_reference: bool
    teacher_copies: int = 0
    """Float32 copies of a chunk of logits that a KL over the whole vocabulary holds; 0 without one. With one
    the reference reads each micro-batch of the update, and no rollout before."""
    bucket_bytes: int = 0
    """DDP's copy of the gradients."""
    support_bytes: int = 0
    """What each token was drawn from, at most, where sampling truncates."""

    @property
    def responses(self) -> int:
        """A rank's, in one iteration."""
        return self.prompts * self.group_size

    @property
    def sequence_tokens(self) -> int:
        """Tokens of the longest possible sequence."""
        return self.prompt_tokens + self.response_tokens

    @property
    def units(self) -> int:
        """The units that a minibatch is cut into: groups if they are kept together, else responses."""
        return (self.prompts if self.keep_groups else self.responses) // self.minibatches

    def sequences(self, micro_batches: int) -> int:
        """The sequences of the largest of so many micro-batches."""
        return -(-self.units // micro_batches) * (self.group_size if self.keep_groups else 1)

    def rows(self, network: Network, micro_batches: int) -> Rows:
        """The rows that a model reads at once if all prompts and responses are as long as they may be."""
        sequences = self.sequences(micro_batches)
        if network.attention != TREE:
            return Rows(sequences, self.sequence_tokens)
        size = self.group_size if self.keep_groups else 1
        return tree_of(sequences // size, size, self.prompt_tokens, self.response_tokens)


def read_requirements(
    trainer: pl.Trainer, module: PolicyOptimization, data: RolloutDataModule
) -> Requirements:
    """The requirements of a run; a configuration that `fit` refuses is refused with the key to change."""
    connect(trainer, module, data)
    data.check("fit")
    with without_weights():
        module.build(lambda build: build())
    longest = longest_prompt(module, data)
    device = trainer.strategy.root_device
    mine = data.prompts_per_iteration // data_ranks(trainer).size
    val_prompts = data.val_prompts_per_batch if data.val is not None else 0
    engine, val_cache_bytes = read_engines(data, mine, val_prompts, longest, device)
    state_bytes = optimizer_bytes(module.optimizer)
    models = tuple(read_models(trainer, module.held_models(), state_bytes))
    policy = module.held_models()["policy"]
    assert isinstance(policy, LanguageModel), "build() refuses others"
    loss = module.objective.terms["policy"]
    assert isinstance(loss, PolicyLoss), "the term of this name"
    return Requirements(
        on_cpu=device.type == "cpu",
        free_bytes=free_bytes(device, trainer.num_devices),
        models=models,
        engine=engine,
        prompts=mine,
        group_size=data.group_size,
        prompt_tokens=longest,
        response_tokens=data.longest(data.sampling),
        minibatches=data.minibatches,
        update_epochs=data.update_epochs,
        micro_batches=trainer.accumulate_grad_batches,
        keep_groups=data.keep_groups,
        scores_first=module.scores_first,
        val_prompts=val_prompts,
        val_cache_bytes=val_cache_bytes,
        reward_tokens=max((reward.tokens_at_once for reward in module.rewards.values()), default=0),
        with_entropy=module.objective.needs_entropy,
        measures_terms=any(isinstance(c, GradientTerms) and c.every for c in trainer.callbacks),  # type: ignore[attr-defined]
        loss_name=None if loss.acts_at_once else type(loss).__name__,
        idle_reference=module.idle_reference,
        teacher_copies=copies_of_teacher(module),
        bucket_bytes=bucket_bytes(trainer, models),
        support_bytes=of_support(data, mine * data.group_size, longest),
    )


def longest_prompt(module: PolicyOptimization, data: RolloutDataModule) -> int:
    """The tokens of the longest training prompt, after a check that the rewards can use all prompts."""
    train = data.read_prompts("train", data.train)
    prompts = [train[row] for row in range(len(train))]
    module.check_prompts("data.train", prompts)
    return max(len(prompt.token_ids) for prompt in prompts)


def bucket_bytes(trainer: pl.Trainer, models: Iterable[Model]) -> int:
    """The copy of the gradients that DDP averages."""
    if data_ranks(trainer).size == 1 or not isinstance(trainer.strategy, DDPStrategy):
        return 0
    return sum(model.gradient_bytes for model in models)


def of_support(data: RolloutDataModule, responses: int, prompt_tokens: int) -> int:
    """The most bytes that the support of a rollout's tokens takes: top-p alone bounds no number of tokens."""
    if not data.sampling.truncates:
        return 0
    vocabulary = load_config(data.pretrained).get_text_config().vocab_size
    tokens = responses * (prompt_tokens + data.longest(data.sampling))
    return support_bytes(data.sampling.top_k, vocabulary, tokens)


def read_engines(
    data: RolloutDataModule, prompts: int, val_prompts: int, prompt_tokens: int, device: torch.device
) -> tuple[EngineMemory, int]:
    """Memory of the engines of training and validation together, and the KV cache that validation needs."""
    demand = Demand(
        sequences=prompts * data.group_size,
        group_size=data.group_size,
        prompt_tokens=prompt_tokens,
        response_tokens=data.longest(data.sampling),
    )
    tokens = data.longest(data.val_sampling)
    validation = replace(demand, sequences=max(val_prompts, 1), group_size=1, response_tokens=tokens)
    engine = data.engine.memory(demand, device)
    validating = (data.val_engine or data.engine).memory(validation, device)
    if data.val_engine is not None:
        engine = replace(validating, weights=validating.weights + engine.weights)
    return engine, validating.cache_needed if val_prompts else 0


def optimizer_bytes(factory: OptimizerFactory) -> float:
    """Bytes of state for each trained element, read from one step on two parameters.

    State of a fixed size, such as a count of steps, is the same for both and drops out.
    """
    one, more = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2, 128))
    optimizer = factory([one, more])
    for parameter in (one, more):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [
        [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
        for p in (one, more)
    ]
    grown = tensor_bytes(states[1]) - tensor_bytes(states[0])
    return grown / (more.numel() - one.numel())


def read_models(trainer: pl.Trainer, held: dict[str, nn.Module], state_bytes: float) -> Iterable[Model]:
    """The models in memory; what is trained is sharded, and has float32 masters where it has 16 bits."""
    amp_bytes, shards = 2 if "mixed" in trainer.precision else None, num_shards(trainer)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    counted: set[int] = set()
    for name, model in held.items():
        new = {id(p): p for p in model.parameters() if id(p) not in counted}
        counted |= new.keys()
        trained = [p for p in new.values() if p.requires_grad]
        share = shards if trained else 1
        elements = sum(p.numel() for p in trained)
        masters = FLOAT32 * sum(p.numel() for p in trained if p.dtype != torch.float32)
        yield Model(
            name=name,
            parameters=sum(p.numel() for p in new.values()),
            parameter_bytes=tensor_bytes(new.values()) // share,
            gradient_bytes=tensor_bytes(trained) // share,
            optimizer_bytes=int(elements * state_bytes + masters) // share,
            network=read_network(model, None if name.startswith("rewards.") else amp_bytes, on_cpu),
        )


def read_network(model: nn.Module, amp_bytes: int | None, on_cpu: bool) -> Network | None:
    """How a model computes; reward models do so outside the trainer's precision."""
    inside: PreTrainedModel
    chunk_tokens = 0
    if isinstance(model, LanguageModel):
        inside, chunk_tokens = model.language_model, model.chunk_tokens
    elif isinstance(model, ValueModel):
        inside = model.trunk
    elif isinstance(model, RewardModel):
        inside = model.model
    else:
        return None
    weight_bytes = inside.dtype.itemsize
    trunk: Any = inside.base_model
    return Network(
        architecture=Architecture.of(inside),
        linear_parameters=sum(m.weight.numel() for m in inside.modules() if isinstance(m, nn.Linear)),
        weight_bytes=weight_bytes,
        compute_bytes=amp_bytes or weight_bytes,
        attention=inside.config._attn_implementation,
        checkpointing=trunk.is_gradient_checkpointing,
        chunk_tokens=chunk_tokens,
        head_in_float32=isinstance(inside.get_output_embeddings(), Float32Linear),
        on_cpu=on_cpu,
    )


def copies_of_teacher(module: PolicyOptimization) -> int:
    """`Requirements.teacher_copies`."""
    divergence = module.kl and module.kl.divergence
    if divergence is None:
        return 0
    return DENSE_COPIES if divergence in (reverse_kl, forward_kl) else DENSE_COPIES_OF_JSD


def free_bytes(device: torch.device, processes: int) -> int:
    """A rank's share of free memory: of its device, or of what the processes of this machine share."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available) // processes
    return int(torch.cuda.mem_get_info(device)[0])
