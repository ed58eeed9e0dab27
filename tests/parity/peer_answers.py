"""What the answer checkers of verl, TRL and math-verify alone say of tests/rewards/answers.jsonl.

    python tests/parity/peer_answers.py FOLDER        # unpacked wheels: FOLDER/trl, FOLDER/verl

Each peer gets the gold answer in the form that it is made for: a number without commas (verl's GSM8K), or in
a box (what rests on math-verify). A gold answer that a peer abstains on counts as disagreement.
"""

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import math_verify

TABLE = Path(__file__).resolve().parents[1] / "rewards" / "answers.jsonl"
Checker = Callable[[str, str], Any]
"""The score of a gold answer and a response."""


def of_verl(folder: Path, name: str) -> ModuleType:
    """A module of verl's, which imports nothing of the rest of verl."""
    path = folder / "verl" / "verl" / "utils" / "reward_score" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkers(folder: Path) -> dict[str, Checker]:
    """The peers' own functions by name."""
    gsm8k, dapo, verl_math = (of_verl(folder, name) for name in ("gsm8k", "math_dapo", "math_verify"))
    sys.path.insert(0, str(folder / "trl"))
    trl = importlib.import_module("trl.rewards.accuracy_rewards")

    def bare(gold: str) -> str:
        return gold.replace(",", "")

    def boxed(gold: str) -> str:
        return rf"\boxed{{{gold}}}"

    return {
        "verl gsm8k, strict": lambda gold, text: gsm8k.compute_score(text, bare(gold), "strict"),
        "verl gsm8k, flexible": lambda gold, text: gsm8k.compute_score(text, bare(gold), "flexible"),
        "verl math_dapo": lambda gold, text: float(dapo.compute_score(text, gold)["acc"]),
        "verl math_verify": lambda gold, text: verl_math._verify_in_subprocess(boxed(gold), text),
        "TRL accuracy_reward": lambda gold, text: trl.accuracy_reward([[{"content": text}]], [boxed(gold)])[
            0
        ],
        "math-verify alone": lambda gold, text: float(
            math_verify.verify(math_verify.parse(boxed(gold)), math_verify.parse(text))
        ),
    }


def agreement(check: Checker, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares of the rows: judged as the table does, right ones paid, wrong ones paid."""
    paid = [check(row["gold"], row["response"]) == 1 for row in rows]
    right = [got for got, row in zip(paid, rows, strict=True) if row["verdict"]]
    wrong = [got for got, row in zip(paid, rows, strict=True) if not row["verdict"]]
    return {
        "agreement": (sum(right) + len(wrong) - sum(wrong)) / len(rows),
        "right paid": sum(right) / len(right),
        "wrong paid": sum(wrong) / len(wrong),
    }


def main() -> None:
    """Print the agreement of each peer as JSON."""
    logging.disable(logging.WARNING)
    rows = [json.loads(line) for line in TABLE.read_text().splitlines()]
    peers = checkers(Path(sys.argv[1]))
    print(json.dumps({name: agreement(check, rows) for name, check in peers.items()}, indent=1))


if __name__ == "__main__":
    main()
