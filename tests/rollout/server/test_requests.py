"""Which of several servers gets a request: two of them that answer at once, in this process."""

import asyncio
from collections.abc import Sequence

from aiohttp import web
from aiohttp.test_utils import TestServer

from grpo_pl.rollout.server.connection import connected
from grpo_pl.rollout.server.requests import Answering


async def asked(rounds: Sequence[dict[int, list[int]]], at_once: int = 4) -> list[dict[int, int]]:
    """For each round of prompts by number, the server that was asked for each."""
    by_prompt: dict[tuple[int, ...], int] = {}

    def server(place: int) -> TestServer:
        async def complete(request: web.Request) -> web.Response:
            by_prompt[tuple((await request.json())["prompt"])] = place
            return web.json_response({"choices": [{"finish_reason": "stop"}]})

        async def weigh(_: web.Request) -> web.Response:
            return web.json_response({"weight_version": "w"})

        app = web.Application()
        app.add_routes([web.post("/v1/completions", complete), web.get("/weight_info", weigh)])
        return TestServer(app)

    async with server(0) as first, server(1) as second:
        urls = [str(one.make_url("")).rstrip("/") for one in (first, second)]
        async with connected(urls, "key", 60.0) as servers:
            answering, found = Answering(servers, weights="w", at_once=at_once), []
            for prompts in rounds:
                for number, prompt in prompts.items():
                    answering.submit(number, {"prompt": prompt})
                answers: dict[int, object] = {}
                while len(answers) < len(prompts):
                    answers |= await answering.answers()
                found.append({number: by_prompt[tuple(prompt)] for number, prompt in prompts.items()})
            answering.cancel()
    return found


def test_the_responses_to_a_prompt_share_a_server_and_prompts_are_spread() -> None:
    [found] = asyncio.run(asked([{0: [1], 1: [1], 2: [2], 3: [2]}]))
    assert found == {0: 0, 1: 0, 2: 1, 3: 1}


def test_a_later_turn_goes_where_the_earlier_ones_were_read() -> None:
    turns = [{0: [1], 1: [2]}, {1: [2, 7, 2]}, {0: [1, 7, 1], 1: [2, 7, 2, 8]}, {0: [1, 7, 1, 8]}]
    assert asyncio.run(asked(turns)) == [{0: 0, 1: 1}, {1: 1}, {0: 0, 1: 1}, {0: 0}]


def test_a_later_turn_goes_elsewhere_where_its_server_is_full() -> None:
    turns = [{0: [1]}, {1: [1], 2: [1], 0: [1, 7, 1]}]
    assert asyncio.run(asked(turns, at_once=3))[1] == {1: 0, 2: 0, 0: 0}
    assert asyncio.run(asked(turns, at_once=2))[1] == {1: 0, 2: 0, 0: 1}
