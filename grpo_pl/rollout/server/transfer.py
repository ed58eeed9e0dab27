"""Sends weights from the trainer to the servers, bucket by bucket."""

import asyncio
import socket
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, final
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from grpo_pl.rollout.server.connection import Fleet, Server, ServerError
from grpo_pl.system.refusal import ArgumentError, check_at_least

MIB = 1 << 20
Bucket = dict[str, Tensor]


def buckets(weights: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[Bucket]:
    """Consecutive weights of at most `max_bytes` together; a larger one alone."""
    bucket: Bucket = {}
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = tensor
        size += tensor.nbytes
    if bucket:
        yield bucket


class WeightTransfer(ABC):
    """A transport of weights by vLLM's weight-transfer API, whose other end is in the server.

    Args:
        bucket_mib: Weights sent together, in MiB: the sender's memory beside the model.
    """

    backend: ClassVar[str]
    """Its name in vLLM's `--weight-transfer-config`."""
    bucket_mib: int

    @abstractmethod
    async def connect(self, fleet: Fleet, *, anew: bool) -> None:
        """Prepare the servers to receive; `anew` if some of them are new."""

    @abstractmethod
    async def send(self, bucket: Bucket, fleet: Fleet) -> None:
        """Have the servers load these weights."""

    @abstractmethod
    def close(self) -> None:
        """Free its resources; it can be connected again."""


@final
class SharedFiles(WeightTransfer):
    """Weights as safetensors files in a folder that trainer and servers see: for CPUs, and without NCCL.

    A file exists until every server has loaded it.

    Args:
        folder: Folder of the files; null for the system's temporary folder. `/dev/shm` is faster on one
            machine, if it has room for a bucket; several machines need a shared file system.
        bucket_mib: Weights sent together, in MiB.
    """

    backend = "files"

    def __init__(self, folder: str | None = None, bucket_mib: int = 256) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise ArgumentError(f"folder={folder} is not a folder: name one that exists")
        check_at_least(1, bucket_mib=bucket_mib)
        self.folder, self.bucket_mib = folder, bucket_mib
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @override
    async def connect(self, fleet: Fleet, *, anew: bool) -> None:
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="grpo_pl-weights-", dir=self.folder)
        await fleet.post("/init_weight_transfer_engine", {"init_info": {"folder": self._temporary.name}})

    @override
    async def send(self, bucket: Bucket, fleet: Fleet) -> None:
        assert self._temporary is not None, "connect() comes first"
        path = Path(self._temporary.name) / "bucket.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in bucket.items()}, path)
        await fleet.post("/update_weights", {"update_info": {"path": str(path)}})
        path.unlink()  # a server that maps it into its memory keeps what it has mapped

    @override
    def close(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


@final
class NCCL(WeightTransfer):
    """Weights broadcast from the trainer's GPU into those of all servers, by vLLM's `nccl` backend.

    A server that is lost while it receives takes the others with it: the broadcast would not end.

    Args:
        address: This machine's address for the servers; null for the one from which it reaches them.
        port: Port of the rendezvous; 0 for any free one.
        bucket_mib: Weights sent together, in MiB.
    """

    backend = "nccl"

    def __init__(self, address: str | None = None, port: int = 0, bucket_mib: int = 1024) -> None:
        check_at_least(1, bucket_mib=bucket_mib)
        self.address, self.port, self.bucket_mib = address, port, bucket_mib
        self._group: Any = None

    @override
    async def connect(self, fleet: Fleet, *, anew: bool) -> None:
        if not fleet.servers or (self._group is not None and not anew):
            return
        from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

        self.close()
        await fleet.post("/shutdown_weight_transfer_engine")
        sizes: dict[Server, int] = {}

        async def count(server: Server) -> None:
            sizes[server] = int((await server.get("/get_world_size"))["world_size"])

        await fleet.each(count)
        world, port, device = 1 + sum(sizes.values()), self.port or free_port(), torch.cuda.current_device()
        address = self.address or own_address([server.url for server in fleet.servers])
        meeting = {"master_address": address, "master_port": port, "world_size": world}
        ahead = {server: 1 + sum(list(sizes.values())[:i]) for i, server in enumerate(sizes)}

        async def join(server: Server) -> None:
            info = meeting | {"rank_offset": ahead[server]}
            await server.post("/init_weight_transfer_engine", {"init_info": info})

        opening = asyncio.to_thread(stateless_init_process_group, address, port, 0, world, device)
        self._group, _ = await asyncio.gather(opening, fleet.each(join))

    @override
    async def send(self, bucket: Bucket, fleet: Fleet) -> None:
        if not fleet.servers:
            return
        described = {
            "names": list(bucket),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in bucket.values()],
            "shapes": [list(tensor.shape) for tensor in bucket.values()],
        }
        sent = [tensor.detach().cuda().contiguous() for tensor in bucket.values()]  # offloaded ones, too
        arguments = (sent, torch.cuda.current_device(), torch.cuda.current_stream())
        # its first half may wait for the servers', which come when they are asked
        sending = threading.Thread(target=self._broadcast, args=arguments, daemon=True)
        sending.start()
        before = len(fleet.servers)
        await fleet.post("/update_weights", {"update_info": described})
        if len(fleet.servers) < before:
            self.close()
            fleet.lose_all(ServerError("it was in a broadcast of weights that has lost a receiver"))
        else:
            sending.join()

    def _broadcast(self, tensors: Iterable[Tensor], device: int, stream: "torch.cuda.Stream") -> None:
        with torch.cuda.device(device):
            for tensor in tensors:
                self._group.broadcast(tensor, src=0, stream=stream)

    @override
    def close(self) -> None:
        if self._group is not None:
            self._group.destroy()
            self._group = None


def own_address(urls: Iterable[str]) -> str:
    """This machine's address for servers, not a loopback address if one of them is elsewhere."""
    addresses = []
    for url in urls:
        parts = urlsplit(url)
        family, *_, target = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.connect(target)  # sends nothing
            addresses.append(str(one.getsockname()[0]))
    return next((address for address in addresses if not ip_address(address).is_loopback), addresses[0])


def free_port() -> int:
    """A free port."""
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])
