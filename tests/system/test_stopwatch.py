"""The seconds of a stage."""

import time

import pytest

from grpo_pl.system.stopwatch import Stopwatch


def test_a_stopwatch_names_the_stage_before_it_and_counts_its_seconds_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages: list[str] = []
    clock = Stopwatch(stages.append)
    monkeypatch.setattr(time, "perf_counter", iter([1.0, 3.0, 4.0, 4.5, 6.0, 7.0]).__next__)
    with clock("sync"):
        assert (stages, clock.seconds) == (["sync"], {})
    with clock("generate"):
        assert stages == ["sync", "generate"]
    with clock("sync"):
        pass
    assert clock.seconds == {"time/sync_s": 3.0, "time/generate_s": 0.5}
