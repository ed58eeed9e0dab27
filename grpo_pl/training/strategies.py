"""Strategies that shard models among ranks."""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, wrap
from typing_extensions import override

from grpo_pl.models.adapted_layers import adapts_experts
from grpo_pl.models.builder import Build
from grpo_pl.models.deferred import deferred_weights
from grpo_pl.models.loading import transformer_blocks
from grpo_pl.models.tensor_parallel import parallelize
from grpo_pl.runs.manifest import Manifest, Part, measured, whole_checkpoint
from grpo_pl.runs.safe_loading import check_checkpoint
from grpo_pl.system.atomic_files import PARTIAL, room_for, sync_folder
from grpo_pl.system.collectives import each_rank_says
from grpo_pl.system.precision import DType
from grpo_pl.system.refusal import ConfigError, about


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state of each model among ranks, block by block.

    Fully sharded data parallelism (ZeRO stage 3: Rajbhandari et al. 2020, arXiv:1910.02054; PyTorch FSDP:
    Zhao et al. 2023, arXiv:2304.11277) by torch's `fully_shard`. Each model, trained or frozen, is a unit of
    its own. Weights are read shard by shard, so that no rank ever holds a whole copy.

    Args:
        replicas: Copies of each model; each is sharded among its share of the ranks, and gradients are
            averaged over copies (hybrid sharding). `nodes` keeps one copy in each node, so that parameters
            travel within nodes only.
        tensor_parallel_size: Neighbouring ranks that compute each layer together, on the same data.
        dtype: Type in which parameters are gathered and computed; null for the type of the shards, which
            the optimizer keeps either way.
        offload: Keep shards, gradients and optimizer state in the CPU's memory.
        save_distributed_checkpoint: Write a folder with a shard for each rank; else one file, for which
            rank 0 gathers all.
        process_group_backend: torch.distributed's; `cpu:gloo,cuda:nccl` where `offload` is set on GPUs.
    """

    def __init__(
        self,
        replicas: int | Literal["nodes"] = 1,
        tensor_parallel_size: int = 1,
        dtype: DType | None = None,
        offload: bool = False,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )
        self.replicas, self.tensor_parallel_size = replicas, tensor_parallel_size
        self.dtype, self.offload = dtype, offload

    @property
    def data_parallel_size(self) -> int:
        """Ranks that get different data; refuses ranks that the arguments do not divide evenly."""
        if self.num_replicas < 1 or self.tensor_parallel_size < 1:
            raise ConfigError(
                f"trainer.strategy: replicas={self.replicas} and tensor_parallel_size="
                f"{self.tensor_parallel_size} must be 1 or more"
            )
        ranks = self.num_nodes * self.num_processes
        shares = self.tensor_parallel_size * self.num_replicas
        if ranks % shares:
            raise ConfigError(
                f"trainer.strategy: {ranks} ranks (trainer.num_nodes x trainer.devices) are not a multiple "
                f"of replicas x tensor_parallel_size = {self.num_replicas} x {self.tensor_parallel_size}: "
                "change one of them"
            )
        return ranks // self.tensor_parallel_size

    @property
    def num_replicas(self) -> int:
        """Copies of each model."""
        return self.num_nodes if self.replicas == "nodes" else self.replicas

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        if self._device_mesh is None:  # before the start, for `plan`
            return {"num_replicas": self.data_parallel_size, "rank": 0}
        return super().distributed_sampler_kwargs

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.data_parallel_size
        super().setup_environment()

    @property
    def _shard_mesh(self) -> DeviceMesh:
        """The ranks among which parameters are sharded, in one dimension, or in two with replicas."""
        if self.num_replicas == 1:
            return self.device_mesh["data_parallel"]
        shards = self.data_parallel_size // self.num_replicas
        names = ("replicate", "shard", "tensor_parallel")
        sizes = (self.num_replicas, shards, self.tensor_parallel_size)
        return init_device_mesh(self.root_device.type, sizes, mesh_dim_names=names)["replicate", "shard"]

    def place(self, build: Build) -> nn.Module:
        """Build a model and shard it; then each rank reads its own part of the weights."""
        with deferred_weights() as weights:
            model = build()
        if self.tensor_parallel_size > 1:
            with about(self):
                parallelize(model, self.device_mesh["tensor_parallel"])
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        arguments: dict[str, Any] = {
            "mesh": self._shard_mesh,
            "reshard_after_forward": True,  # the root too: kept whole, it would go stale
            "mp_policy": MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32 if dtype else None),
            "offload_policy": OffloadPolicy(),
        }
        if self.offload:
            arguments["offload_policy"] = CPUOffloadPolicy(pin_memory=self.root_device.type != "cpu")
        for block in transformer_blocks(model):
            fully_shard(block, **arguments)
        fully_shard(model, **arguments)
        weights.load(model, torch.device("cpu") if self.offload else self.root_device)
        return model

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write shards into a partial folder and rename it: a kill leaves a whole checkpoint."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        place = Path(self.broadcast(filepath))
        partial, old = (place.with_name(f".{place.name}{what}{PARTIAL}") for what in ("", ".old"))
        if self.is_global_zero:
            for left in (partial, old):
                shutil.rmtree(left, ignore_errors=True)
        self.barrier()
        step = checkpoint["global_step"]
        with room_for(place):
            try:
                super().save_checkpoint(checkpoint, partial, storage_options)
            except CheckpointException as error:
                raise next(iter(error.failures.values()))[0] from error
        self.barrier()
        files = self._measured_by_all(partial)
        if self.is_global_zero:
            Manifest(step, files).write(partial)
            if place.is_dir():
                place.replace(old)
            partial.replace(place)
            sync_folder(place.parent)
            shutil.rmtree(old, ignore_errors=True)
        self.barrier()

    def _measured_by_all(self, folder: Path) -> dict[str, Part]:
        """The checksums of a folder's files; each rank reads some of them. Collective."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        local = files[self.global_rank :: self.world_size]
        parts_by_rank = each_rank_says({str(path.relative_to(folder)): measured(path) for path in local})
        return {name: part for parts in parts_by_rank for name, part in parts.items()}

    @override
    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint that the path means, if it is whole and holds data alone."""
        whole = whole_checkpoint(Path(checkpoint_path))
        check_checkpoint(whole)
        return super().load_checkpoint(whole, weights_only=True)

    @override
    def model_to_device(self) -> None:
        """Move modules that are not sharded; `place` has put the models where they belong."""
        assert self.lightning_module is not None
        for child in self.lightning_module.children():
            if not self.offload or not any(p.numel() for p in child.parameters()):
                child.to(self.root_device)


StrategyRegistry.register("fsdp2", FSDP2Strategy, "every model divided among all ranks")
StrategyRegistry.register("hsdp", FSDP2Strategy, "every model divided in each node", replicas="nodes")


def place(strategy: Strategy, build: Build) -> nn.Module:
    """Build a model where its strategy wants it, sharded or whole; refuses other ways to divide it."""
    if isinstance(strategy, FSDP2Strategy):
        return strategy.place(build)
    if isinstance(strategy, ModelParallelStrategy):
        raise ConfigError(
            "trainer.strategy ModelParallelStrategy divides nothing by itself: set it to FSDP2Strategy"
        )
    if not isinstance(strategy, FSDPStrategy):
        return build().to(strategy.root_device)
    if strategy.sharding_strategy not in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
        raise ConfigError(
            f"trainer.strategy.sharding_strategy={strategy.sharding_strategy.name} keeps copies, whose "
            "gradients would count twice in their norm: set it to FULL_SHARD, or trainer.strategy to hsdp"
        )
    model = build()
    if adapts_experts(model):
        raise ConfigError(
            "trainer.strategy FSDPStrategy cannot gather adapters of fused experts: set it to fsdp2, or "
            "model.policy.target_modules to layers of attention"
        )
    kinds = {type(block) for block in transformer_blocks(model)}
    return wrap(model, auto_wrap_policy=ModuleWrapPolicy(kinds))
