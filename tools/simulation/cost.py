"""The cost of an iteration: memory and seconds of each stage, and the best layout over GPUs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_pl.commands.plan.formulas import FLOAT32, Network, Rows, activation_bytes, head_bytes
from grpo_pl.models.tree_attention import TREE
from simulation.inputs import WEIGHT, Machine, Model, Work

STATE, SAVED = 4 * FLOAT32, 3 * FLOAT32
"""Bytes of a trained parameter: itself, its gradient and Adam's two moments; in a checkpoint no gradient."""
ROUNDING = 1 / 8
"""How much larger an iteration may become so that its prompts can be divided among the ranks."""
COLOCATED, DEDICATED, OVERLAPPED = LAYOUTS = "colocated", "dedicated", "overlapped"
"""An engine beside the trainer on each rank; engines on GPUs of their own; these, with OverlappedEngine."""


@dataclass(frozen=True)
class Plan:
    """The assignment of GPUs to training and generation."""

    layout: str
    trainers: int
    """GPUs that train."""
    engines: int
    """GPUs that generate: the same ones in the colocated layout."""
    tensor_parallel: int
    """GPUs of one engine."""
    shards: int
    """GPUs that the trained parameters are sharded over: all trainers (fsdp2), or those of a node (hsdp)."""
    prompts: int
    """Prompts of an iteration: the work's, or a few more so that all trainers have equally many."""

    @property
    def gpus(self) -> int:
        """All GPUs of the job."""
        return self.trainers if self.layout == COLOCATED else self.trainers + self.engines

    @property
    def strategy(self) -> str:
        """The name of its overlay in configs/strategy."""
        return "fsdp2" if self.shards == self.trainers else "hsdp"


@dataclass(frozen=True)
class Cost:
    """The cost of an iteration."""

    plan: Plan
    stages: dict[str, float]
    """Seconds of sync, generate, score, and update, each alone."""
    undisturbed_s: float
    """Seconds of an iteration without failures."""
    iteration_s: float
    """Seconds with checkpoints and failures, on average."""

    @property
    def busy_gpu_s(self) -> float:
        """GPU-seconds in which a GPU is busy."""
        learning = self.stages["score"] + self.stages["update"]
        return (
            self.stages["sync"] * self.plan.gpus
            + self.stages["generate"] * self.plan.engines
            + learning * self.plan.trainers
        )


@dataclass(frozen=True)
class Simulation:
    """A model at work on a machine."""

    machine: Machine
    work: Work
    model: Model

    # -------------------------------------------------------------------------------------------- memory

    def trainer_bytes(self, plan: Plan) -> float:
        """Bytes on a GPU in the update: its shard, two layers with gradients, a micro-batch's activations."""
        longest = max(self.work.micro_batch_tokens, self.work.longest)
        computing = Network(
            architecture=self.model.architecture,
            linear_parameters=self.model.computed,
            weight_bytes=WEIGHT,
            compute_bytes=WEIGHT,
            attention=TREE,
            on_cpu=False,
            checkpointing=self.work.recompute,
            chunk_tokens=1024,
        )
        gathered = 2 * (WEIGHT + FLOAT32) * self.model.layer
        needed = activation_bytes(computing, Rows(1, longest, longest, longest)) + head_bytes(
            computing, with_entropy=False
        )
        return self.shard_bytes(plan) + gathered + needed

    def shard_bytes(self, plan: Plan) -> float:
        """Bytes that a training GPU holds throughout."""
        return STATE * self.model.parameters / plan.shards

    def cache_bytes(self, plan: Plan) -> float:
        """Bytes of an engine for keys and values."""
        free = self.machine.memory_bytes * self.machine.memory_share
        held = self.shard_bytes(plan) if plan.layout == COLOCATED else 0.0
        return plan.tensor_parallel * (free - held) - self.model.weight_bytes

    def token_bytes(self, plan: Plan) -> float:
        """Keys and values of a token, on all GPUs of an engine: each has at least one head."""
        architecture = self.model.architecture
        copies = max(1, plan.tensor_parallel / architecture.kv_heads)
        return copies * architecture.cache_bytes(1, WEIGHT)

    def refusal(self, plan: Plan) -> str | None:
        """Why a plan is infeasible: refused by grpo_pl.training.checks or vLLM, or short of memory."""
        mine, minibatches = plan.prompts * self.work.group_size // plan.trainers, self.work.minibatches
        if plan.prompts % plan.trainers:
            return f"{plan.prompts} prompts for {plan.trainers} ranks"
        if mine % minibatches:
            return f"{mine} responses of a rank for {minibatches} minibatches"
        if self.trainer_bytes(plan) > self.machine.memory_bytes * self.machine.memory_share:
            return "memory: update"
        if self.cache_bytes(plan) < self.token_bytes(plan) * self.work.longest:
            return "memory: engine"
        return None

    # ------------------------------------------------------------------------------------------- seconds

    def generate_s(self, plan: Plan) -> float:
        """Seconds until the last engine's last response: reading prompts, full engines, engines that run dry.

        While there is a queue, `at_once` sequences run. Then they end one after the other: after t tokens
        `alive(t)` of them are left, and any sequence in any engine with probability `any_alive`. A step costs
        its overhead, the transfer of the weights from memory or their products, whichever is longer, and the
        reading of all caches. The engine with the longest responses has `skew` times the average work.
        """
        m, work, lengths, tp = self.machine, self.work, self.work.lengths, plan.tensor_parallel
        engines = plan.engines // tp
        mine = max(work.responses / engines, 1.0)
        of_token = self.token_bytes(plan)
        fitting = self.cache_bytes(plan) / (of_token * (work.prompt_tokens + lengths.mean))
        at_once = max(min(mine, work.max_sequences, fitting), 1.0)
        skew = work.skew(mine, engines)
        products, memory = tp * m.flops * m.engine_mfu, tp * m.memory_bandwidth * m.memory_use
        overhead = m.step_s + (2 * self.model.architecture.layers * m.reduce_s if tp > 1 else 0.0)
        token_s = self.model.forward_flops(work.prompt_tokens + lengths.context) / products

        def step(busy: Tensor, running: Tensor, context: Tensor) -> Tensor:
            weights = torch.maximum(busy * self.model.weight_bytes / memory, running * token_s)
            return busy * overhead + weights + running * context * of_token / memory

        full = step(*torch.tensor([1.0, at_once, work.prompt_tokens + lengths.context]).double())
        queued = skew * (mine - at_once) * lengths.mean * float(full) / at_once
        ending = step(
            lengths.any_alive(at_once * engines),
            lengths.alive * at_once * skew,
            work.prompt_tokens + lengths.tokens,
        )
        prompts_s = work.prompts / engines * work.prompt_tokens * self.model.forward_flops(0) / products
        return prompts_s + queued + float(ending.sum()) * lengths.cell

    def pass_s(self, plan: Plan, steps: int, flops: float, gathers: int, gradients: bool) -> float:
        """A pass over the rollout in so many synchronous steps: computing, or moving shards, if longer.

        Args:
            plan: The plan.
            steps: Parts after which all ranks wait for each other.
            flops: FLOPs as a multiple of a forward's.
            gathers: All-gathers of each layer in each micro-batch.
            gradients: Whether gradients are summed after each micro-batch.
        """
        m, work, layers = self.machine, self.work, self.model.architecture.layers
        tokens = work.read_tokens / plan.trainers / steps
        skew = work.skew(work.responses / plan.trainers / steps, plan.trainers)
        forward = self.model.forward_flops(work.prompt_tokens + work.lengths.context)
        computing = skew * tokens * flops * forward / (m.flops * m.mfu)
        moving = gathers * m.gather(plan.shards, layers, self.model.weight_bytes)
        if gradients:
            gradient_bytes = FLOAT32 * self.model.parameters
            moving += m.gather(plan.shards, layers, gradient_bytes)
            moving += m.replicas_sum(plan.trainers // plan.shards, layers, gradient_bytes / plan.shards)
        micro_batches = math.ceil(skew * tokens / max(work.micro_batch_tokens, work.longest))
        return steps * max(computing, micro_batches * moving)

    def update_s(self, plan: Plan) -> float:
        """Forwards and backwards of all optimizer steps."""
        flops = 4 if self.work.recompute else 3
        once = self.pass_s(plan, self.work.minibatches, flops, gathers=2, gradients=True)
        return self.work.update_epochs * once

    def score_s(self, plan: Plan) -> float:
        """Seconds of old log-probabilities; the first optimizer step computes its own."""
        share = 1 - 1 / self.work.minibatches if self.work.update_epochs == 1 else 1.0
        return share * self.pass_s(plan, 1, 1, gathers=1, gradients=False)

    def sync_s(self, plan: Plan, through_files: bool = False) -> float:
        """Seconds to gather each parameter from its shards in turn, and to copy or send it to the engines."""
        m, tensors, size = self.machine, self.model.tensors, self.model.weight_bytes
        gathered = tensors * m.tensor_s + m.gather(plan.shards, tensors, size)
        if plan.layout == COLOCATED:
            return gathered + m.wake_s + 2 * size / plan.tensor_parallel / (m.memory_bandwidth * m.memory_use)
        nodes = -(-plan.engines // m.gpus_per_node)
        return gathered + (m.files(nodes, size) if through_files else m.broadcast(nodes, tensors, size))

    def cost(self, plan: Plan) -> Cost:
        """The cost of an iteration by this plan."""
        stages = {
            "sync": self.sync_s(plan),
            "generate": self.generate_s(plan),
            "score": self.score_s(plan),
            "update": self.update_s(plan),
        }
        return self.total(plan, stages)

    def total(self, plan: Plan, stages: dict[str, float]) -> Cost:
        """The cost of an iteration with these stages, with its share of checkpoints and failures."""
        learning = stages["score"] + stages["update"]
        overlap = min(stages["generate"], learning) if plan.layout == OVERLAPPED else 0.0
        undisturbed_s = stages["sync"] + stages["generate"] + learning - overlap
        nodes = -(-plan.trainers // self.machine.gpus_per_node)
        lost = self.machine.lost_share(
            plan.gpus, undisturbed_s, self.machine.save(nodes, SAVED * self.model.parameters)
        )
        return Cost(plan, stages, undisturbed_s, undisturbed_s / (1 - lost) if lost < 1 else math.inf)

    # --------------------------------------------------------------------------------------------- plans

    def plans(self, layout: str, gpus: int) -> Iterator[Plan]:
        """All plans of a layout for so many GPUs; whole nodes, where there is more than one."""
        whole, heads, asked = self.machine.gpus_per_node, self.model.architecture.heads, self.work.prompts
        unit = whole if gpus > whole else 1
        for trainers in [gpus] if layout == COLOCATED else range(unit, gpus, unit):
            engines = gpus if layout == COLOCATED else gpus - trainers
            rounded = -(-asked // trainers) * trainers
            prompts = rounded if rounded <= (1 + ROUNDING) * asked else asked
            for tensor_parallel in (n for n in (1, 2, 4, 8) if n <= whole and engines % n == heads % n == 0):
                for shards in dict.fromkeys((trainers, min(trainers, whole))):
                    yield Plan(layout, trainers, engines, tensor_parallel, shards, prompts)

    def planned(self, plan: Plan) -> Cost:
        """The cost of an iteration with the plan's number of prompts."""
        return replace(self, work=replace(self.work, prompts=plan.prompts)).cost(plan)

    def best(self, layout: str, gpus: int) -> Cost | str:
        """The fastest plan, or the obstacle of the plan that comes closest."""
        costs, refused = [], []
        for plan in self.plans(layout, gpus):
            if reason := self.refusal(plan):
                refused.append(reason)
            else:
                costs.append(self.planned(plan))
        if costs:
            fastest = min(costs, key=lambda cost: cost.iteration_s)
            return fastest if math.isfinite(fastest.iteration_s) else "failures: no progress"
        return next((reason for reason in refused if "memory" in reason), [*refused, "too few GPUs"][0])
