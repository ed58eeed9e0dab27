"""The answer checkers of verl and TRL on our table of answers; findings/README.md quotes these numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parity
def test_the_peers_agree_less_with_people_than_math_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """`MathAnswer` agrees on 99 % at least: tests/rewards/test_answers.py."""
    pytest.importorskip("math_verify")
    folder = os.environ.get("GRPO_PL_PARITY")
    if folder is None or not all((Path(folder) / peer).is_dir() for peer in ("trl", "verl")):
        pytest.skip("needs GRPO_PL_PARITY, a folder with the unpacked wheels of trl and verl")
    command = [sys.executable, str(HERE / "peer_answers.py"), folder]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with capsys.disabled():
        for peer, shares in report.items():
            print(f"\n{peer}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), end="")
    assert len(report) == 6
    assert all(0 < shares["agreement"] < 0.99 for shares in report.values())
