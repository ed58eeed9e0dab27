"""Generated questions."""

import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal, final

from typing_extensions import override

from grpo_pl.functional import derive_seed
from grpo_pl.prompts.sources import PromptSource, Question
from grpo_pl.prompts.task_rows import make_rows
from grpo_pl.system.refusal import ArgumentError, about, check_at_least

_MAX_TRAIN_ROWS = 10_000
_REFUSED = {
    "codeio": "its rows are made by running samples of code, which write files and compute something else "
    "each time in one row of 200"
}
"""Tasks of reasoning-gym that cannot be used, and why."""


@final
class Arithmetic(PromptSource):
    """Problems `a + b` over all pairs of `digits`-digit numbers, none twice; needs no files.

    The splits are disjoint by construction: of one seeded permutation of all problems, `val` takes the first
    `held_out` and `train` the others. Only one of `a + b` and `b + a`, drawn by lot, is a problem, so
    training never sees a held-out sum the other way round.

    Args:
        digits: Digits of each operand: 1 to 9 for one digit, 10 to 99 for two (4,095 sums), ...
        operators: The operators to use, each of `+`, `-` and `*` at most once, such as `+-`.
        split: One of the two disjoint parts.
        size: Rows of the split; null for all, for `train` at most 10,000. A larger size only adds rows.
        held_out: Problems set aside for `val`; the same number in both splits keeps them disjoint.
        seed: Seed of the permutation; the same number in both splits keeps them disjoint.
        template: The question, with `{a}`, `{operator}` and `{b}`.
    """

    def __init__(
        self,
        digits: int = 2,
        operators: str = "+",
        split: Literal["train", "val"] = "train",
        size: int | None = None,
        held_out: int = 200,
        seed: int = 0,
        template: str = "What is {a} {operator} {b}? Reply with just the number.",
    ) -> None:
        if not 1 <= digits <= 18:
            raise ArgumentError(f"digits={digits}: expected 1 to 18")
        if not operators or not set(operators) <= set("+-*") or len(set(operators)) < len(operators):
            raise ArgumentError(f"operators={operators!r}: expected some of + - *, each once")
        if missing := [name for name in ("{a}", "{operator}", "{b}") if name not in template]:
            raise ArgumentError(f"template={template!r}: expected {', '.join(missing)} in it")
        self._lowest, self._operators, self._template = 10 ** (digits - 1), operators, template
        self._span = 9 * self._lowest
        problems = len(operators) * self._span * (self._span + 1) // 2
        if not 0 < held_out < problems:
            raise ArgumentError(
                f"held_out={held_out}: expected 1 or more and less than {problems}, the number of problems"
            )
        rows = held_out if split == "val" else problems - held_out
        if size is not None and not 0 < size <= rows:
            raise ArgumentError(f"size={size}: expected 1 or more and at most {rows}, all of split {split!r}")
        if size is None:
            size = rows if split == "val" else min(rows, _MAX_TRAIN_ROWS)
        first = 0 if split == "val" else held_out
        permutation_seed = derive_seed(seed, "arithmetic", digits, operators)
        self._seed = seed
        self._problems = _first_of_permutation(problems, first + size, permutation_seed)[first:]

    @override
    def __len__(self) -> int:
        return len(self._problems)

    @override
    def __getitem__(self, index: int) -> Question:
        pair, operator_index = divmod(self._problems[index], len(self._operators))
        larger = (math.isqrt(8 * pair + 1) - 1) // 2  # pairs counted along the rows of a triangle
        a, b = self._lowest + pair - larger * (larger + 1) // 2, self._lowest + larger
        if derive_seed(self._seed, "order", pair) % 2:
            a, b = b, a
        operator = self._operators[operator_index]
        answer = {"+": a + b, "-": a - b, "*": a * b}[operator]
        text = self._template.replace("{a}", str(a)).replace("{operator}", operator).replace("{b}", str(b))
        return Question(text=text, answer=str(answer))


@final
class ReasoningGym(PromptSource):
    """A procedural task of the reasoning-gym library, by name, such as `leg_counting` or `chain_sum`.

    Metadata holds `task`, `config` and `entry`, which the reward `TaskScore` reads. An entry survives
    pickling but not JSON: some verifiers tell tuples from lists. Where several answers are right, `answer` is
    one of them; it is empty where the library knows none (`boxnet`, `rush_hour`).

    The library seeds row `i` with `seed + i`, so that seeds 0 and 1 would share all rows but one; we hash
    `seed` first, so different seeds give different rows. Small tasks may still repeat a question. Rows are
    made at their first use, in a process of their own (see `make_rows`).

    Args:
        task: The task's name in reasoning-gym.
        size: Number of rows to generate.
        seed: Seed of the rows; `data.train` and `data.val` need different ones.
        config: The task's own options, such as `{min_animals: 2, max_animals: 4}`.
    """

    def __init__(
        self, task: str, size: int = 1000, seed: int = 0, config: dict[str, Any] | None = None
    ) -> None:
        try:
            import reasoning_gym
            from reasoning_gym.composite import DatasetSpec
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise ImportError(
                "ReasoningGym needs the package `reasoning-gym`: pip install 'grpo_pl[tasks]'"
            ) from error
        if task not in DATASETS:
            close = ", ".join(get_close_matches(task, DATASETS, cutoff=0.4)) or "leg_counting, chain_sum"
            raise ArgumentError(f"task={task}: reasoning-gym has no such task; it has, for instance, {close}")
        check_at_least(1, size=size)
        self._task, self._config, self._size = task, dict(config or {}), size
        self._seed = derive_seed(seed, "reasoning_gym", task) % 2**31
        if taken := sorted({"size", "seed"} & set(self._config)):
            raise ArgumentError(f"config={config}: set {' and '.join(taken)} beside task instead")
        with _config_of(task, config):
            default = {"weight": 1.0, "config": {}}
            parts = [DatasetSpec(**(default | part)) for part in self._config.get("datasets", ())]
            if parts:
                self._config["datasets"] = parts  # of `composite`
            for part in parts:
                if part.name in DATASETS:
                    with _config_of(part.name, config):
                        reasoning_gym.create_dataset(part.name, **({"size": size, "seed": 0} | part.config))
            reasoning_gym.create_dataset(task, size=size, seed=self._seed, **self._config)
        if "composite" in {part.name for part in parts}:
            raise ArgumentError(f"config={config}: a composite task cannot be a part; name its tasks")
        if refused := sorted({task, *(part.name for part in parts)} & _REFUSED.keys()):
            raise ArgumentError(f"task={refused[0]}: {_REFUSED[refused[0]]}; choose another task")

    @override
    def __len__(self) -> int:
        return self._size

    @override
    def __getitem__(self, index: int) -> Question:
        entry = self._entries[range(self._size)[index]]
        metadata = {"task": self._task, "config": self._config, "entry": entry}
        return Question(text=entry["question"], answer=_gold_answer(entry), metadata=metadata)

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        with about(self):
            return make_rows(self._task, self._config, self._size, self._seed)


@contextmanager
def _config_of(task: str, config: dict[str, Any] | None) -> Iterator[None]:
    """In the body, whatever the library raises on the task's options is a fault of the config."""
    try:
        yield
    except ArgumentError:
        raise
    except _REFUSALS as error:
        reason = " ".join(str(error).split()) or "reasoning-gym refuses it"
        raise ArgumentError(
            f"config={config or {}}: {reason:.200} ({type(error).__name__}); change config: {_options(task)}"
        ) from error


_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _options(task: str) -> str:
    """The options of a task with their defaults, as far as these are short."""
    from reasoning_gym.factory import DATASETS

    if task == "composite":
        return "composite takes {datasets: [{name: leg_counting, weight: 1.0, config: {}}]} with other names"
    defaults = DATASETS[task][1]()
    names = [field.name for field in fields(defaults) if field.name not in ("size", "seed")]
    options = ", ".join(f"{name}={getattr(defaults, name)!r:.40}" for name in names)
    return f"{task} takes {options or 'no options'}"


def _gold_answer(entry: dict[str, Any]) -> str:
    """The answer of an entry, or one that its metadata gives as an example, spelled as its question asks."""
    answer, metadata = entry["answer"], entry["metadata"]
    if answer is None and "possible_answer" in metadata:  # graph_color
        return json.dumps(metadata["possible_answer"])
    if answer is None:
        answer = metadata.get("example_answer", metadata.get("example_correct_answer", ""))
    elif answer == "":  # polynomial_equations without a real root
        answer = '""'
    return str(answer)


def _first_of_permutation(total: int, count: int, seed: int) -> list[int]:
    """The first `count` items of a seeded permutation of `range(total)`, in O(count) memory.

    Fisher and Yates' shuffle with untouched items implicit. The first items of `random.sample` would depend
    on `count`, and the splits would overlap.
    """
    generator = random.Random(seed)
    moved: dict[int, int] = {}
    picked = []
    for position in range(count):
        other = generator.randrange(position, total)
        picked.append(moved.get(other, other))
        moved[other] = moved.get(position, position)
    return picked
