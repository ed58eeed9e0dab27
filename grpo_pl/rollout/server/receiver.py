"""The servers' end of `SharedFiles`: imported by vLLM's workers alone, through `--worker-extension-cls`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from typing_extensions import override
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from grpo_pl.rollout.server.transfer import SharedFiles
from grpo_pl.rollout.vllm import repack_tied_head, unpack_experts


@dataclass
class Folder(WeightTransferInitInfo):  # type: ignore[misc]
    """The folder of the files."""

    folder: str


@dataclass
class File(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A file with a part of the model's weights."""

    path: str


class FileReceiver(WeightTransferEngine):  # type: ignore[misc]
    """Loads a model's weights from one safetensors file after the other."""

    init_info_cls, update_info_cls = Folder, File

    @override
    def init_transfer_engine(self, init_info: Folder) -> None:
        if not Path(init_info.folder).is_dir():
            raise ValueError(f"this server sees no folder {init_info.folder}")

    @override
    def start_weight_update(self) -> None:
        self._missing = {name for name, _ in self.model.named_parameters()}
        if self.device.type == "cpu":
            unpack_experts(self.model)
        initialize_layerwise_reload(self.model)

    @override
    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    @override
    def receive_weights(self, update_info: File) -> None:
        with safe_open(update_info.path, "pt", device=str(self.device)) as file:
            self._missing -= self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    @override
    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            repack_tied_head(self.model)
        elif self.device.type == "cuda":
            torch.cuda.synchronize()
        missing, self._missing = self._missing, set()
        if missing:
            raise ValueError(f"no weights have come for {sorted(missing)[:3]}")

    @override
    def shutdown(self) -> None:
        pass


WeightTransferEngineFactory.register_engine(SharedFiles.backend, FileReceiver)


class WorkerExtension:
    """Adds nothing to a worker: its import registers `FileReceiver`."""
