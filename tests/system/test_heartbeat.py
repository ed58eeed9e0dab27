"""What takes long shows that it goes on."""

import os
import re

import pytest
from helpers.commands import Fit

from grpo_pl.system import heartbeat as module
from grpo_pl.system.heartbeat import heartbeat
from grpo_pl.system.output import captured_output


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_S", 0.001)
    monkeypatch.setattr(module, "TERMINAL_S", 0.001)


@pytest.mark.usefixtures("often")
def test_in_a_terminal_one_line_moves_and_vanishes() -> None:
    ours, theirs = os.openpty()
    with heartbeat(lambda: "starting", theirs):
        said = read_until(ours, rb"s\r\x1b\[Kstarting, \d+ s")
    assert b"\n" not in said
    assert read_until(ours, rb"\r\x1b\[K$")
    os.close(ours)
    os.close(theirs)


@pytest.mark.usefixtures("often")
def test_in_a_log_there_are_whole_lines_although_libraries_are_kept_from_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = ""
    with heartbeat(lambda: "starting"), captured_output():
        while not re.fullmatch(r"(starting, \d+ s\n)+", said):
            said += capfd.readouterr().out


@pytest.mark.usefixtures("often")
def test_a_run_shows_that_its_engine_starts_and_how_far_a_validation_is(
    fit: Fit, capfd: pytest.CaptureFixture[str]
) -> None:
    fit("--trainer.max_epochs", "1", "--data.val_prompts_per_batch", "1")
    said = capfd.readouterr().out
    assert re.search(
        r"\nstarting engines, .*\nvalidate, .*\nvalidate [1-7]/8, .*\niteration   0 ", said, re.DOTALL
    )


def read_until(descriptor: int, pattern: bytes) -> bytes:
    said = b""
    while not re.search(pattern, said):
        said += os.read(descriptor, 1024)
    return said
