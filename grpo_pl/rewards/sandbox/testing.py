"""Runs programs against tests; called in worker processes."""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from grpo_pl.rewards.sandbox.box import Box, Program, SandboxError

Test = str | dict[str, str]
"""Python with assertions, or the `input` of a program and the right `output`."""

_FENCE = re.compile(r"[ \t]*```[ \t]*(\w*)")
_PYTHON = "", "py", "python", "python3"
_DIALOGUE = Path(__file__).with_name("dialogue.py").read_text(encoding="utf-8")
_MAIN = "import sys; sys.path.append('.'); from dialogue import {0}; {0}({1!r})"


def last_program(response: str) -> str | None:
    """The last closed block between fences of three backticks that is Python or names no language."""
    program: str | None = None
    block: list[str] | None = None
    language = ""
    for line in response.splitlines(keepends=True):
        fence = _FENCE.match(line)
        if fence and block is None:
            block, language = [], fence[1].lower()
        elif fence and block is not None:
            program = "".join(block) if language in _PYTHON else program
            block = None
        elif block is not None:
            block.append(line)
    return program


def score(response: str, tests: Sequence[Test], box: Box, timeout_s: float, partial_credit: bool) -> float:
    """The share of tests that the program in a response passes; without partial credit 1 for all, else 0."""
    program = last_program(response)
    if program is None:
        return 0.0
    passed = 0
    for test in tests:
        if isinstance(test, dict):
            right = _prints(program, test["input"], test["output"], box, timeout_s)
            if not right and not partial_credit:
                return 0.0
            passed += right
    assertions = [test for test in tests if isinstance(test, str)]
    if assertions:
        passed += _holds(program, assertions, box, timeout_s * len(assertions))
    return passed / len(tests) if partial_credit else float(passed == len(tests))


def _prints(program: str, stdin_text: str, expected: str, box: Box, timeout_s: float) -> bool:
    """Whether a program that reads `stdin_text` prints the expected output and exits with 0."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
        stdin.write(stdin_text.encode(errors="surrogatepass"))
        stdin.seek(0)
        with Program(box, {"main.py": program}, stdin=stdin, stdout=stdout, timeout_s=timeout_s) as running:
            succeeded = running.wait()
        stdout.seek(0)
        return succeeded and _lines(stdout.read().decode(errors="replace")) == _lines(expected)


def _lines(text: str) -> list[str]:
    """The lines of an output without the white space at their ends and the empty lines at its end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _holds(program: str, assertions: Sequence[str], box: Box, timeout_s: float) -> int:
    """How many tests pass; names that they do not define are the program's."""
    questions, to_program = os.pipe()
    answers, to_tests = os.pipe()
    ends = questions, to_program, answers, to_tests
    served = {"main.py": _MAIN.format("serve", "program.py"), "program.py": program, "dialogue.py": _DIALOGUE}
    checked = {"main.py": _MAIN.format("check", "tests.json"), "dialogue.py": _DIALOGUE}
    checked["tests.json"] = json.dumps(list(assertions))
    with tempfile.TemporaryFile() as verdicts:
        try:
            running = Program(box, served, stdin=questions, stdout=to_tests, timeout_s=timeout_s)
            testing = Program(
                box, checked, stdin=answers, stdout=to_program, stderr=verdicts, timeout_s=timeout_s
            )
        finally:
            for end in ends:
                os.close(end)
        with running, testing:
            testing.wait()
        verdicts.seek(0)
        output = verdicts.read().decode(errors="replace")
    if not re.fullmatch("[01]*", output):
        raise SandboxError(f"the tests could not begin: {output[-200:]}")
    return output.count("1")
