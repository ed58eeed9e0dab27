"""The reward for programs: runs them against tests in a sandbox."""

import json
from functools import partial
from typing import Any, final

from typing_extensions import override

from grpo_pl.rewards.base import Verifier
from grpo_pl.rewards.pool import Workers
from grpo_pl.rewards.sandbox import testing
from grpo_pl.rewards.sandbox.box import Box, Isolation, refusal
from grpo_pl.rewards.workers import WorkerReward
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Sample

_DISK_BYTES = 2**26


@final
class CodeTests(WorkerReward, Verifier):
    """1 if the Python program in the response passes all tests, else 0.

    The program is the last closed block between fences of three backticks that is Python or names no
    language; a response without one scores 0. A test is an object `{"input": ..., "output": ...}`: the
    program reads `input`, must print `output`, white space at ends of lines apart, and exit with 0 (as in
    APPS, Hendrycks et al. 2021, arXiv 2105.09938, and LiveCodeBench, arXiv 2403.07974). Or it is Python
    source with assertions about what the program defines (MBPP's `test_list`, Austin et al. 2021, arXiv
    2108.07732; for HumanEval, Chen et al. 2021, arXiv 2107.03374, its `test` and the line
    `check(<entry_point>)`). Unlike theirs, our assertions run in a process of their own and see only plain
    data of the program, passed by value: a program can neither read nor redefine what it is compared with.

    Programs run without a network, the environment, other processes and any file but those of Python; what
    they write is thrown away. The data set's tests run in such a sandbox too. A worker runs the programs of a
    response one after the other, so `workers.timeout_s` limits all of its tests; `workers.memory_gib` is also
    the memory of one program.

    Args:
        tests: The metadata column with the list of tests, or with JSON text of it; null reads it from the
            answer. The reward abstains without tests.
        partial_credit: The score is the share of tests that pass.
        test_timeout_s: Wall-clock limit of a program for each test, in seconds; beyond it, the test fails.
        isolation: `namespaces` gives a program its own root, network, process table and user, a folder of 64
            MiB to write to, and threads. `landlock` is for machines that do not grant these (a container,
            often): the kernel lets it open the files of Python alone, write none and start no thread; names
            and sizes of other files can be seen.
    """

    def __init__(
        self,
        *,
        tests: str | None = "tests",
        partial_credit: bool = False,
        test_timeout_s: float = 5.0,
        isolation: Isolation = "namespaces",
        workers: Workers = Workers(timeout_s=60.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(workers=workers, **kwargs)
        if not 0 < test_timeout_s <= workers.timeout_s:
            raise ArgumentError(
                f"test_timeout_s={test_timeout_s}: expected more than 0 and at most workers.timeout_s="
                f"{workers.timeout_s}"
            )
        reason = refusal(isolation)
        if reason is not None:
            other = "landlock" if isolation == "namespaces" else "namespaces"
            raise ArgumentError(
                f"isolation={isolation} is not granted by this machine ({reason}): set it to {other}, which "
                f"{'allows less' if other == 'landlock' else 'needs other rights'}, or run elsewhere"
            )
        self.tests, self.partial_credit, self.test_timeout_s = tests, partial_credit, test_timeout_s
        self.box = Box(isolation, int(workers.memory_gib * 2**30), _DISK_BYTES)

    @override
    def call(self, sample: Sample) -> partial[float] | None:
        tests = self._tests(sample.prompt)
        if tests is None:
            return None
        return partial(
            testing.score, sample.response, tests, self.box, self.test_timeout_s, self.partial_credit
        )

    @override
    def can_score(self, prompt: Prompt) -> bool:
        return self._tests(prompt) is not None

    @override
    def extract(self, response: str) -> str | None:
        return testing.last_program(response)

    @override
    def right_response(self, prompt: Prompt) -> str | None:
        return None  # the gold answer of a program is its tests

    def _tests(self, prompt: Prompt) -> list[testing.Test] | None:
        """The tests of a prompt; None without a list of tests."""
        tests = prompt.answer if self.tests is None else prompt.metadata.get(self.tests)
        if isinstance(tests, str):
            try:
                tests = json.loads(tests)
            except ValueError:
                return None
        return tests if isinstance(tests, list) and tests and all(map(_is_test, tests)) else None


def _is_test(test: object) -> bool:
    if isinstance(test, dict):
        return all(isinstance(test.get(key), str) for key in ("input", "output"))
    return isinstance(test, str)
