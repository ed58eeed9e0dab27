"""Two servers of the tiny model, started once for each file, and the arguments of a run on them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.run_results import NO_VALIDATION
from helpers.servers import KEY, OURS, Process


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    folder = tmp_path_factory.mktemp("servers")
    both = [Process(folder / f"{i}.log", *OURS, f"--pretrained={tiny_model}") for i in range(2)]
    try:
        for one in both:
            one.wait_until_ready()
        yield both
    finally:
        for one in both:
            one.kill()


@pytest.fixture
def servers(pair: list[Process]) -> list[Process]:
    """Both of them, alive."""
    for one in pair:
        if one.process.poll() is not None:
            one.start()
    for one in pair:
        one.wait_until_ready()
    return pair


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)


@pytest.fixture
def run(servers: list[Process]) -> tuple[str, ...]:
    urls = json.dumps([one.url for one in servers])
    return ("--data.engine", "ServerEngine", "--data.engine.urls", urls, *NO_VALIDATION)
