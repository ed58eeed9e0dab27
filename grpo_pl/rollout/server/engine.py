"""The engine that uses vLLM servers."""

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing import parent_process
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, distributed
from typing_extensions import override

from grpo_pl.models.heads import HeadDType
from grpo_pl.models.loading import load_tokenizer
from grpo_pl.rollout.assembly import Response, token_ends
from grpo_pl.rollout.engine import EngineLostError, Request, SamplingEngine
from grpo_pl.rollout.server.compatible import Expected, check, is_paused
from grpo_pl.rollout.server.connection import Fleet, Server, ServerError, connected
from grpo_pl.rollout.server.requests import Answering
from grpo_pl.rollout.server.transfer import MIB, NCCL, SharedFiles, WeightTransfer, buckets
from grpo_pl.system.addresses import is_address
from grpo_pl.system.collectives import first_rank_says, in_group, is_first_rank, launched_ranks
from grpo_pl.system.precision import DType
from grpo_pl.system.refusal import ArgumentError, ConfigError, check_at_least, name_of

log = logging.getLogger(__name__)


class Synced(NamedTuple):
    """Which servers have the current weights."""

    weights: str
    """Their unique name on the servers."""
    urls: list[str]
    lost: dict[str, str]
    """Lost server -> reason."""

    def without(self, lost: dict[str, ServerError], engine: str) -> "Synced":
        """The state without lost servers, which are logged as those of the engine with this name."""
        for url, error in lost.items():
            log.warning("%s: the server at %s is lost: %s", engine, url, error)
        reasons = {url: str(error) for url, error in lost.items()}
        return Synced(self.weights, [url for url in self.urls if url not in lost], self.lost | reasons)


@final
class ServerEngine(SamplingEngine):
    """vLLM servers, on their own GPUs or machines, shared by all ranks.

    Every response is a separate request with its own seed, as with VLLMEngine, so it does not depend on the
    server beyond rounding. A server that dies, hangs or is restarted is left out until the next weight sync;
    the others answer its requests. `rollout/servers_lost` counts such servers, `rollout/retried` the
    responses, both of a rank on average. Rank 0 pushes the weights while the others wait.

    Args:
        urls: Addresses of the servers, such as `http://127.0.0.1:8000`.
        pretrained: Model folder or hub name of the tokenizer; where empty, the one of `--pretrained`.
        api_key_variable: Environment variable that holds the servers' API key.
        transfer: Transport of weights to the servers; null for NCCL from a GPU and SharedFiles from a CPU.
        dtype: Type that weights are sent in, best that of the servers; null for the trainer's.
        timeout_s: Seconds without a sign of life, or for one bucket of weights, after which a server is lost.
        max_sequences: A rank's simultaneous requests to one server.
        head_dtype: The `--head_dtype` that the servers were started with; they do not say it.
    """

    def __init__(
        self,
        urls: list[str],
        pretrained: str = "",
        api_key_variable: str = "VLLM_API_KEY",
        transfer: WeightTransfer | None = None,
        dtype: DType | None = None,
        timeout_s: float = 60.0,
        max_sequences: int = 256,
        head_dtype: HeadDType = None,
    ) -> None:
        if not urls or not all(map(is_address, urls)) or len({url.rstrip("/") for url in urls}) < len(urls):
            raise ArgumentError(
                f"urls={urls}: expected one or more different addresses such as http://127.0.0.1:8000"
            )
        if not timeout_s > 0:
            raise ArgumentError(f"timeout_s={timeout_s}: expected more than 0 seconds")
        check_at_least(1, max_sequences=max_sequences)
        self.urls, self.pretrained = [url.rstrip("/") for url in urls], pretrained
        self.api_key_variable, self.transfer = api_key_variable, transfer
        self.dtype, self.timeout_s, self.max_sequences = dtype, timeout_s, max_sequences
        self._transfer, self.head_dtype = transfer, head_dtype
        self._synced = Synced("", self.urls, {})
        self._answering: Answering | None = None
        self._connections, self._runner, self._retried = AsyncExitStack(), asyncio.Runner(), 0

    @property
    @override
    def weights_dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else getattr(torch, self.dtype)

    # ------------------------------------------------------------------------------------------------ set-up

    @override
    def start(self, *, max_sequence_tokens: int, max_sequences: int, device: torch.device) -> None:
        if not os.environ.get(self.api_key_variable):
            raise ArgumentError(
                f"api_key_variable={self.api_key_variable} is not set: export the servers' API "
                "key under this name",
                self,
            )
        if parent_process() is not None and launched_ranks() > 1 and not in_group():
            raise ConfigError(
                "OverlappedEngine cannot share servers among ranks: take ServerEngine alone, or set "
                "trainer.devices and trainer.num_nodes to 1",
                self,
            )
        self._tokenizer = load_tokenizer(self.pretrained)
        self._expected = Expected(
            max_sequence_tokens=max_sequence_tokens,
            encode=lambda text: list(self._tokenizer(text, add_special_tokens=False)["input_ids"]),
            key_variable=self.api_key_variable,
        )
        self._transfer = self.transfer or (NCCL() if device.type == "cuda" else SharedFiles())
        self._synced = Synced("", self.urls, {})  # pretrained ones, without a name
        try:
            asyncio.run(self._check(self._transfer))
        except ServerError as error:
            raise ConfigError(str(error), self) from None

    async def _check(self, transfer: WeightTransfer) -> None:
        async with self._fleet(self.urls) as fleet:
            await asyncio.gather(*(check(server, self._expected) for server in fleet.servers))
            if is_first_rank():
                await transfer.connect(fleet, anew=True)
            for url, error in fleet.lost.items():
                name = type(transfer).__name__
                raise ServerError(
                    f"the server at {url} cannot take weights by {name} ({error}): start it with "
                    f"--transfer {name}, or set transfer to what it has"
                )

    @asynccontextmanager
    async def _fleet(self, urls: Iterable[str]) -> AsyncIterator[Fleet]:
        key = os.environ[self.api_key_variable]
        async with connected(urls, key, self.timeout_s) as servers:
            yield Fleet(servers)

    @override
    def shutdown(self) -> None:
        self.abandon()
        if self._transfer is not None:
            self._transfer.close()

    # ----------------------------------------------------------------------------------------------- weights

    @override
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if in_group():
            distributed.barrier()  # until no rank waits for responses
        if is_first_rank():
            sent = ((name, tensor.to(self.weights_dtype or tensor.dtype)) for name, tensor in weights)
            self._synced = asyncio.run(self._push(sent, f"{uuid.uuid4()}, step {version}"))
        else:
            for _ in weights:
                pass
        self._synced, self.version = first_rank_says(self._synced), version
        if not self._synced.urls:
            raise no_server_left(self._synced, self)

    async def _push(self, weights: Iterable[tuple[str, Tensor]], name: str) -> Synced:
        """Send all weights to every server that can be reached."""
        transfer, before = self._transfer, self._synced
        assert transfer is not None, "start() comes first"
        async with self._fleet(self.urls) as fleet:
            stale: set[Server] = set()

            async def look(server: Server) -> None:
                held = (await server.get("/weight_info"))["weight_version"]
                if before.weights not in ("", held) or await is_paused(server):
                    stale.add(server)

            await fleet.each(look)
            same = {server.url for server in fleet.servers} == set(before.urls)
            await transfer.connect(fleet, anew=bool(stale) or not same)
            await fleet.each(begin)
            for bucket in buckets(weights, transfer.bucket_mib * MIB):
                await transfer.send(bucket, fleet)
            await fleet.post("/finish_weight_update", {"weight_version": name})
            await fleet.post("/resume")

            async def look_closer(server: Server) -> None:
                if server in stale:
                    await check(server, self._expected)

            await fleet.each(look_closer)
            for server in fleet.servers:
                if server.url in before.lost:
                    log.warning("%s: the server at %s is back", name_of(self), server.url)
            known = {url: reason for url, reason in before.lost.items() if url in fleet.lost}
            news = {url: error for url, error in fleet.lost.items() if url not in known}
            return Synced(name, [url for url in self.urls if url not in known], known).without(
                news, name_of(self)
            )

    # -------------------------------------------------------------------------------------------- generation

    @override
    def submit(self, request: Request) -> None:
        if self._answering is None:
            self._answering = self._runner.run(self._open())
        self._answering.submit(request.key, completion_request(request))

    @override
    def step(self) -> list[tuple[int, Response]]:
        answering = self._answering
        if answering is None:
            return []
        choices = self._runner.run(answering.answers())
        self._retried, answering.retried = self._retried + answering.retried, 0
        self._synced = self._synced.without(answering.lost, name_of(self))
        answering.lost = {}
        if not self._synced.urls:
            raise no_server_left(self._synced, self)
        if not answering.under_way:
            self.abandon()
        return [(number, self._response(choice)) for number, choice in choices.items()]

    async def _open(self) -> Answering:
        fleet = await self._connections.enter_async_context(self._fleet(self._synced.urls))
        return Answering(fleet.servers, weights=self._synced.weights, at_once=self.max_sequences)

    @override
    def abandon(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None
            self._runner.run(self._connections.aclose())

    @override
    def costs(self) -> dict[str, float]:
        retried, self._retried = float(self._retried), 0
        return {"rollout/servers_lost": float(len(self._synced.lost)), "rollout/retried": retried}

    def _response(self, choice: dict[str, Any]) -> Response:
        token_ids, text = choice["token_ids"], choice["text"]
        return Response(
            token_ids=token_ids,
            logprobs=choice["logprobs"]["token_logprobs"],
            text=text,
            truncated=choice["finish_reason"] == "length",
            token_ends=token_ends(self._tokenizer, token_ids, text),
        )


def completion_request(request: Request) -> dict[str, Any]:
    """The body of a request to /v1/completions.

    It sets all that the model's generation_config.json could change, and with it the distribution.
    """
    return {
        "prompt": request.token_ids,
        "max_tokens": request.sampling.max_tokens,
        "temperature": request.sampling.temperature,
        "seed": request.seed,
        "logprobs": 0,
        "return_token_ids": True,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


async def begin(server: Server) -> None:
    """Have a server drop all requests and caches, and wait for weights."""
    await server.post("/pause?mode=abort")
    try:
        await server.post("/start_weight_update")
    except ServerError as error:
        if error.status is None:
            raise
        await server.post("/finish_weight_update")  # of an interrupted update
        await server.post("/start_weight_update")


def no_server_left(synced: Synced, engine: ServerEngine) -> EngineLostError:
    """The error that names each server's reason."""
    reasons = "; ".join(f"{url}: {reason}" for url, reason in synced.lost.items())
    return EngineLostError(f"no server is left ({reasons})", engine)
