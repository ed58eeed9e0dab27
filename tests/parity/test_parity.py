"""Every formula of TRL, verl, OpenRLHF, NeMo-RL and SkyRL in the tables is ours, in float64, to 1e-7.

The tables are what the peers' own code says (make_tables.py); which component of ours answers stands in
parity_cases.py. With GRPO_PL_PARITY=FOLDER, the peers' unpacked wheels, the tables are made again and
compared.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_batches import Batch, make_batches
from parity_cases import CASES, Case

HERE = Path(__file__).resolve().parent
PEERS = ("trl", "verl", "openrlhf", "nemo_rl", "skyrl")
TOLERANCE = 1e-7
"""Of what is greater, 1 or the peer's number. What is left are a peer's 1e-8 beside counts and variances."""


@cache
def table(name: str) -> dict[str, Any]:
    return json.loads((HERE / "tables" / f"{name}.json").read_text())


def entries(name: str) -> dict[str, Any]:
    return {key: entry for key, entry in table(name).items() if key not in ("peer", "version")}


def from_json(columns: dict[str, list]) -> Batch:
    """By way of numpy, which makes float64 of a list of floats."""
    return {name: torch.from_numpy(np.array(values)) for name, values in columns.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_our_component_says_what_the_peer_says(case: Case) -> None:
    peer, key = case.key.split("/")
    for name, columns in table(peer)[key]["outputs"].items():
        theirs, ours = from_json(columns), case.ours(from_json(table("batches")[name]))
        assert theirs.keys() <= ours.keys()
        for output, expected in theirs.items():
            error = (ours[output] - expected).abs() / expected.abs().clamp(min=1)
            assert error.max() <= TOLERANCE, (
                f"{case.formula}: {output} on batch {name} is off by {error.max():.1e}"
            )


@pytest.mark.parametrize("peer", PEERS)
def test_every_formula_in_a_table_is_compared(peer: str) -> None:
    compared = [case.key.removeprefix(f"{peer}/") for case in CASES if case.key.startswith(f"{peer}/")]
    assert sorted(entries(peer)) == sorted(compared)


def test_the_batches_in_the_tables_are_those_that_the_script_makes() -> None:
    for name, batch in make_batches().items():
        saved = from_json(table("batches")[name])
        assert all(torch.equal(saved[column], values) for column, values in batch.items())


@pytest.mark.parity
@pytest.mark.parametrize("peer", PEERS)
def test_the_tables_are_what_the_packages_say(peer: str, tmp_path: Path) -> None:
    folder = os.environ.get("GRPO_PL_PARITY")
    if folder is None or not (Path(folder) / peer).is_dir():
        pytest.skip("needs GRPO_PL_PARITY, a folder with the peer's unpacked wheel")
    command = [sys.executable, HERE / "make_tables.py", "--packages", folder, "--out", tmp_path, peer]
    subprocess.run([str(part) for part in command], check=True)
    made = json.loads((tmp_path / f"{peer}.json").read_text())
    assert made.keys() == table(peer).keys()
    for key, entry in entries(peer).items():
        for name, columns in entry["outputs"].items():
            saved, now = from_json(columns), from_json(made[key]["outputs"][name])
            assert saved.keys() == now.keys()
            for output, values in saved.items():
                torch.testing.assert_close(
                    now[output], values, rtol=1e-12, atol=1e-12, msg=f"{key}: {output}"
                )
