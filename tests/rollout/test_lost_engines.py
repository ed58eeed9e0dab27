"""What an engine says when its processes are gone: it names itself, wherever it stands."""

import logging

import pytest

from grpo_pl.rollout.engine import EngineLostError
from grpo_pl.rollout.server.connection import ServerError
from grpo_pl.rollout.server.engine import ServerEngine, Synced, no_server_left
from grpo_pl.system.refusal import KEY, name_of

URL = "http://127.0.0.1:8000"
NAMES = {"data.engine": "data.engine", "data.val_engine": "data.val_engine", "": "ServerEngine"}


@pytest.fixture(params=NAMES, ids=NAMES.values())
def named(request: pytest.FixtureRequest) -> tuple[ServerEngine, str]:
    """An engine with this key in a config, or none, and how it is called."""
    engine = ServerEngine([URL])
    if request.param:
        setattr(engine, KEY, request.param)
    return engine, NAMES[request.param]


def test_the_loss_of_an_engine_names_its_key(named: tuple[ServerEngine, str]) -> None:
    engine, name = named
    assert str(EngineLostError("it is gone", engine)).startswith(f"{name}: it is gone; the same command")


def test_the_loss_of_all_servers_names_the_engine_and_each_reason(named: tuple[ServerEngine, str]) -> None:
    engine, name = named
    error = no_server_left(Synced("", [], {URL: "it is mute"}), engine)
    assert str(error).startswith(f"{name}: no server is left ({URL}: it is mute); ")


def test_the_loss_of_one_server_is_logged_as_of_its_engine(
    named: tuple[ServerEngine, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, name = named
    monkeypatch.setattr(logging.getLogger("grpo_pl"), "propagate", True)
    left = Synced("", [URL], {}).without({URL: ServerError("it is mute")}, name_of(engine))
    assert left.urls == []
    assert f"{name}: the server at {URL} is lost: it is mute" in caplog.text
