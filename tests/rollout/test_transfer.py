"""Where weights set out to servers from."""

import socket

import psutil
import pytest

from grpo_pl.rollout.server.transfer import own_address


def outside() -> str | None:
    """An address of this machine that others could know, if it has one."""
    every = [address for addresses in psutil.net_if_addrs().values() for address in addresses]
    ours = [a.address for a in every if a.family == socket.AF_INET and not a.address.startswith("127.")]
    return ours[0] if ours else None


def test_servers_here_meet_the_trainer_on_loopback() -> None:
    assert own_address(["http://127.0.0.1:8001", "http://127.0.0.1:8002"]) == "127.0.0.1"


def test_servers_elsewhere_meet_it_where_they_can_reach_it() -> None:
    if (address := outside()) is None:
        pytest.skip("this machine has no address but loopback")
    assert own_address(["http://127.0.0.1:8001", f"http://{address}:8002"]) == address
