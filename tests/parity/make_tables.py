"""Writes tables/*.json: random batches, and what TRL, verl, OpenRLHF, NeMo-RL and SkyRL say of them.

Run by hand, when a peer has a new version or a case is added; the tests read the tables alone:

    python tests/parity/make_tables.py                      # pip downloads the peers that are packages
    python tests/parity/make_tables.py --packages FOLDER    # unpacked wheels: FOLDER/trl, /verl, ...
    python tests/parity/make_tables.py --packages FOLDER --out ELSEWHERE trl verl

Nothing is installed: a peer is imported from its folder, and what it imports for other ends (ray,
deepspeed, ...) is a stub. NeMo-RL is no package: put a checkout of github.com/NVIDIA-NeMo/RL at
FOLDER/nemo_rl. Each peer runs in a process of its own, in float64 throughout: where its code asks for
float32 it gets float64, for the formulas are compared and not the rounding. What a peer writes at padding
is stored as 0, except in gradients: it reaches no loss.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from harness import Entry, in_float64
from parity_batches import Batch, make_batches

HERE = Path(__file__).resolve().parent
VERSIONS = {
    "trl": "1.16.0",
    "verl": "0.9.1",
    "openrlhf": "0.11.2",
    "nemo_rl": "0.6.0 at 7ea279a",
    "skyrl": "0.3.0",
}
IMPORT_FROM = {"openrlhf": "openrlhf-0.11.2.data/purelib"}
"""Where the package stands in its wheel, if not on top."""


def unpack_wheels(folder: Path) -> None:
    """Download the peers that are packages, without what they depend on."""
    for peer, version in VERSIONS.items():
        if peer == "nemo_rl":
            continue
        command = ["pip", "download", "--no-deps", "--dest", str(folder), f"{peer}=={version}"]
        subprocess.run([sys.executable, "-m", *command], check=True)
        (wheel,) = folder.glob(f"{peer}-*.whl")
        zipfile.ZipFile(wheel).extractall(folder / peer)


def as_json(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Lists of numbers; in full precision, as Python prints a float."""
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def outputs(entry: Entry, batch: Batch) -> dict[str, torch.Tensor]:
    """What the peer says of a batch, 0 at padding."""
    with in_float64():
        got = entry.run({name: column.clone() for name, column in batch.items()})
    about_tokens = {"advantages", "returns", "weights", "rewards", "estimate", "token_loss"}
    return {
        name: torch.where(batch["mask"], value, 0.0) if name in about_tokens else value
        for name, value in got.items()
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """One line a case, so that a difference shows where it is."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    path.write_text(f"{{\n{lines}\n}}\n")


def write_peer(peer: str, packages: Path, out: Path) -> None:
    """The table of one peer: each of its entries on each of its batches."""
    sys.path.insert(0, str(packages / peer / IMPORT_FROM.get(peer, "")))
    entries: dict[str, Entry] = importlib.import_module(f"peer_{peer}").ENTRIES
    batches = make_batches()
    table: dict[str, Any] = {"peer": peer, "version": VERSIONS[peer]}
    for key, entry in entries.items():
        table[key] = {
            "function": entry.function,
            "how": entry.how,
            "parameters": entry.parameters,
            "outputs": {name: as_json(outputs(entry, batches[name])) for name in entry.batches},
        }
    write(out / f"{peer}.json", table)


def main() -> None:
    """Each peer in a process of its own: their stubs would disturb one another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "tables")
    parser.add_argument("--here", action="store_true", help="run the one peer in this process")
    parser.add_argument("peers", nargs="*")
    options = parser.parse_args()
    if options.here:
        write_peer(options.peers[0], options.packages, options.out)
        return
    with tempfile.TemporaryDirectory() as downloads:
        if options.packages is None:
            options.packages = Path(downloads)
            unpack_wheels(options.packages)
        write(options.out / "batches.json", {name: as_json(batch) for name, batch in make_batches().items()})
        for peer in options.peers or [p for p in VERSIONS if (options.packages / p).is_dir()]:
            arguments = ["--packages", options.packages, "--out", options.out, "--here", peer]
            subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
