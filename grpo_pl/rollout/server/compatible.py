"""Checks a server before it is used; each mistake is one sentence."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from grpo_pl.rollout.server.connection import Server, ServerError

START = "python -m grpo_pl.rollout.server"
PROBE = "Ünïcode, 12345 + 6789 = 19134; def f(x): return [x ** 2]"
"""A text that different tokenizers hardly split alike."""
SHOWN = 5
"""Likeliest tokens to compare, to see whether a server's log-probabilities include the temperature."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Properties that all servers must share with the trainer."""

    max_sequence_tokens: int
    encode: Callable[[str], list[int]]
    """The trainer's tokenizer, without special tokens."""
    key_variable: str


async def check(server: Server, expected: Expected) -> None:
    """Refuse a server that is unusable, or whose responses would mean something else, by a ServerError."""
    await check_address(server, expected)
    await check_tokenizer(server, expected)
    if not await is_paused(server):
        await check_logprobs(server, expected)


async def is_paused(server: Server) -> bool:
    """Whether it answers no requests, as after an interrupted weight update."""
    return bool((await server.get("/is_paused"))["is_paused"])


async def check_address(server: Server, expected: Expected) -> None:
    """Refuse a server that is absent, has another key, takes no weights or reads too short sequences."""
    try:
        model = (await server.get("/v1/models"))["data"][0]
    except ServerError as error:
        if error.status is None:
            hint = f"does not answer ({error}): start it with {START}, or correct urls"
        elif error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            hint = (
                f"has another API key than {expected.key_variable}: export the one it was started with, or "
                "name its variable in api_key_variable"
            )
        else:
            hint = f"is not a vLLM server ({error}): correct urls"
        raise ServerError(f"the server at {server.url} {hint}") from None
    needed = expected.max_sequence_tokens
    if model["max_model_len"] < needed:
        raise ServerError(
            f"the server at {server.url} reads {model['max_model_len']} tokens, and data.max_prompt_tokens "
            f"and data.sampling.max_tokens make {needed}: start it with --max_model_len {needed}, or set "
            "them lower"
        )
    try:
        await server.get("/weight_info")
    except ServerError as error:
        raise ServerError(
            f"the server at {server.url} takes no weights ({error}): start it with {START}"
        ) from None


async def check_tokenizer(server: Server, expected: Expected) -> None:
    """Refuse a server with another tokenizer."""
    request = {"prompt": PROBE, "add_special_tokens": False}
    if (await server.post("/tokenize", request))["tokens"] != expected.encode(PROBE):
        raise ServerError(
            f"the server at {server.url} has a model with another vocabulary: start it with the trainer's "
            "--pretrained, or correct urls"
        )


async def check_logprobs(server: Server, expected: Expected) -> None:
    """Refuse a server whose log-probabilities are from before the temperature.

    Otherwise the likeliest token is twice as far from the fifth at temperature 1/2 as at 1.
    """
    word = expected.encode(PROBE)[:1]

    async def spread(temperature: float) -> float:
        body = {"prompt": word, "max_tokens": 1, "temperature": temperature, "logprobs": SHOWN}
        body["return_tokens_as_token_ids"] = True  # or tokens of the same text would count once
        reply = await server.post("/v1/completions", body)
        shown = sorted(reply["choices"][0]["logprobs"]["top_logprobs"][0].values(), reverse=True)
        return float(shown[0] - shown[SHOWN - 1])  # one more is shown where the token is none of these

    whole, half = await asyncio.gather(spread(1.0), spread(0.5))
    if half < 1.5 * whole:
        raise ServerError(
            f"the server at {server.url} gives log-probabilities from before the temperature: start it with "
            f"{START}, or with --logprobs-mode processed_logprobs"
        )
