"""The verdicts on each validation problem: `verdicts.jsonl`, a line for each verifier and validation."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from grpo_pl.system.atomic_files import append, replacing
from grpo_pl.types import Prompt


@dataclass(frozen=True)
class ProblemVerdicts:
    """Which responses to which validation problems were right, by one verifier in one validation.

    Example: `ProblemVerdicts("val/accuracy", ("0:9f2c01d4", "1:77ab03e9"), np.array([[True], [False]]))`.
    """

    name: str
    """`val/<verifier>` for greedy responses, `val_sampled/<verifier>` for samples."""
    problems: tuple[str, ...]
    """`problem_id` of each of the `P` problems, in the order of `data.val`."""
    solved: Bool[np.ndarray, "P n"]
    """A column for each response to a problem."""


def problem_id(prompt: Prompt) -> str:
    """A problem's place in `data.val` and a hash of its question and answer: equal in runs that share it."""
    content = json.dumps([prompt.messages or prompt.text, prompt.answer], default=str)
    return f"{prompt.row}:{hashlib.blake2b(content.encode(), digest_size=4).hexdigest()}"


def in_order(name: str, solved: Mapping[str, Sequence[bool]]) -> ProblemVerdicts:
    """The verdicts on problems by id, in the order of the problems' places."""
    problems = sorted(solved, key=lambda problem: int(problem.partition(":")[0]))
    return ProblemVerdicts(name, tuple(problems), np.array([solved[p] for p in problems], dtype=bool))


def append_verdicts(path: Path, iteration: int, verdicts: Iterable[ProblemVerdicts]) -> None:
    """Append a line for each of a validation's verdicts, and the list of problems where the file lacks it."""
    lists = {line["list"] for line in _lines(path) if "problems" in line}
    lines: list[dict[str, Any]] = []
    for one in verdicts:
        digest = hashlib.blake2b(" ".join(one.problems).encode(), digest_size=8).hexdigest()
        if digest not in lists:
            lists.add(digest)
            lines.append({"list": digest, "problems": one.problems})
        bits = np.packbits(one.solved.reshape(-1)).tobytes().hex()
        samples = one.solved.shape[1]
        lines.append(
            {"iteration": iteration, "name": one.name, "of": digest, "samples": samples, "solved": bits}
        )
    append(path, "".join(json.dumps(line) + "\n" for line in lines))


def forget_verdicts(path: Path, after: int) -> None:
    """Drop torn lines and the verdicts of iterations above `after`; -1 drops those of all validations."""
    if path.exists():
        kept = [line for line in _lines(path) if line.get("iteration", -1) <= after]
        with replacing(path) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in kept)


def read_verdicts(path: Path) -> dict[int, dict[str, ProblemVerdicts]]:
    """Iteration -> name -> the verdicts of that validation; empty where there is no file.

    Raises:
        ValueError: If a line is not as `append_verdicts` writes it.
    """
    lists: dict[str, tuple[str, ...]] = {}
    found: dict[int, dict[str, ProblemVerdicts]] = {}
    for line in _lines(path):
        if "problems" in line:
            lists[line["list"]] = tuple(line["problems"])
            continue
        if line.get("of") not in lists:
            raise ValueError(f"{path}: verdicts on an unknown list of problems")
        problems, name = lists[line["of"]], line["name"]
        shape = len(problems), line["samples"]
        bits = np.frombuffer(bytes.fromhex(line["solved"]), np.uint8)
        if len(bits) != -(-shape[0] * shape[1] // 8):
            raise ValueError(f"{path}: {name} of iteration {line['iteration']} has {len(bits)} bytes")
        solved = np.unpackbits(bits, count=shape[0] * shape[1]).astype(bool).reshape(shape)
        found.setdefault(line["iteration"], {})[name] = ProblemVerdicts(name, problems, solved)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file; a kill may have torn one."""
    texts = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for text in texts if (line := _parsed(text)) is not None]


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text) if text.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
