"""Rewards by rules: a comparison, a pattern, a length, or a function of the user."""

import pickle
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

from typing_extensions import override

from grpo_pl.rewards.answers import gold_answer, hashed_answer
from grpo_pl.rewards.base import RewardFunction, Verifier
from grpo_pl.rewards.numerals import lone_number
from grpo_pl.rewards.patterns import compiled
from grpo_pl.rewards.pool import Outcome
from grpo_pl.rewards.quantities import Quantity, Ratio, quantity
from grpo_pl.rewards.signatures import SIGNATURES, SignatureName, call_all, is_async
from grpo_pl.rewards.tasks import TaskScore as TaskScore  # where configs of 0.1.0 name it
from grpo_pl.rewards.workers import WorkerReward
from grpo_pl.system.refusal import ArgumentError, about, check_at_least
from grpo_pl.types import Prompt, Sample


class _SpelledAnswer(Verifier):
    """A verifier that compares spellings of answers."""

    @abstractmethod
    def gold(self, prompt: Prompt) -> str | None:
        """The spelling of the gold answer, as `extract` spells answers; None if it cannot be read."""

    @override
    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        golds = [self.gold(sample.prompt) for sample in samples]
        return [
            None if gold is None else float(self.extract(sample.response) == gold)
            for gold, sample in zip(golds, samples, strict=True)
        ]

    @override
    def can_score(self, prompt: Prompt) -> bool:
        return self.gold(prompt) is not None


@final
class LastNumber(_SpelledAnswer):
    """1 if the number of the response equals the gold answer, else 0.

    Made for GSM8K (arXiv 2110.14168). The number is the one behind the last `####`, whatever note follows;
    without one it is the last number of the text. `$1,234.00`, `1234.` and `1234` are equal; a unit is
    ignored, so `50%` is 50 and `5 m^2` is 5. As a gold answer, behind `####` and on a last line with one
    number, `1/2` is 0.5, `1e3` and `1k` are 1000; elsewhere a fraction, a power, a time and `1k` are not
    read. It abstains where the gold answer is no finite decimal (`1/3`, `3:30`), and knows neither boxes nor
    tags: see `MathAnswer`.
    """

    @override
    def gold(self, prompt: Prompt) -> str | None:
        answer = prompt.answer.rpartition("####")[2].strip()
        number = quantity(answer)
        return lone_number(answer) if number is None else _decimal(number)

    @override
    def extract(self, response: str) -> str | None:
        answer = hashed_answer(response)
        if answer is not None:
            return _decimal(quantity(gold_answer(answer)))
        number = quantity(response.rstrip().rpartition("\n")[2])
        return lone_number(response) if number is None else _decimal(number)


def _decimal(number: Quantity | Ratio | None) -> str | None:
    return number.decimal() if isinstance(number, Quantity) else None


@final
class ExactMatch(_SpelledAnswer):
    """1 if the response, stripped, is the gold answer, else 0. It abstains where the gold answer is empty.

    Args:
        fold_case: Compare without regard to case.
        fold_whitespace: Compare with each run of white space as one space.
    """

    def __init__(self, *, fold_case: bool = False, fold_whitespace: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fold_case = fold_case
        self.fold_whitespace = fold_whitespace

    @override
    def gold(self, prompt: Prompt) -> str | None:
        return self.extract(prompt.answer)

    @override
    def extract(self, response: str) -> str | None:
        text = " ".join(response.split()) if self.fold_whitespace else response.strip()
        return (text.casefold() if self.fold_case else text) or None


@final
class Format(RewardFunction):
    r"""1 if the response matches a regular expression, else 0; `.` matches line ends too.

    Example: `<think>.*?</think>\s*<answer>.*?</answer>`, a format reward like that of DeepSeek-R1 (arXiv
    2501.12948, section 2.2.2).

    Args:
        pattern: The regular expression. A repeat inside of a repeat can take exponential time.
        full_match: Whether the whole response must match, rather than a part of it.
        opened: Read what the prompt has opened for the response before it: where a chat template ends in
            `<think>`, the response has no such tag of its own.
    """

    def __init__(self, pattern: str, *, full_match: bool = True, opened: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        expression = compiled("pattern", pattern)
        self._match = expression.fullmatch if full_match else expression.search
        self.opened = opened

    @override
    def score(self, samples: Sequence[Sample]) -> list[float]:
        texts = [sample.prompt.opened * self.opened + sample.response for sample in samples]
        return [float(self._match(text) is not None) for text in texts]


@final
class LengthPenalty(RewardFunction):
    """`-min(1, tokens / max_tokens)`: short responses are better; in [-1, 0].

    The reward of a response does not depend on the others; `GroupLength` compares it with them.

    Args:
        max_tokens: The response length, in tokens, from which the penalty is 1.
    """

    def __init__(self, max_tokens: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least(1, max_tokens=max_tokens)
        self.max_tokens = max_tokens

    @override
    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [-min(1.0, sample.response_tokens / self.max_tokens) for sample in samples]


@final
class SoftOverlong(RewardFunction):
    """The soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13), in [-1, 0].

    0 up to `max_tokens - buffer_tokens`, then `(max_tokens - buffer_tokens - tokens) / buffer_tokens`, and -1
    from `max_tokens` on.

    Args:
        max_tokens: `L_max` in tokens, usually the token limit of the engine (20,480 in the paper).
        buffer_tokens: `L_cache` in tokens, the stretch in which the punishment grows (4,096 in the paper).
    """

    def __init__(self, max_tokens: int, buffer_tokens: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 1 <= buffer_tokens <= max_tokens:
            raise ArgumentError(
                f"buffer_tokens={buffer_tokens}: expected 1 or more and at most max_tokens={max_tokens}"
            )
        self.max_tokens = max_tokens
        self.buffer_tokens = buffer_tokens

    @override
    def score(self, samples: Sequence[Sample]) -> list[float]:
        free = self.max_tokens - self.buffer_tokens
        slopes = [(free - sample.response_tokens) / self.buffer_tokens for sample in samples]
        return [max(-1.0, min(0.0, slope)) for slope in slopes]


@final
class Function(RewardFunction):
    """A user's function, called with keyword arguments: once for each sample, or for all if it is TRL's.

    Example: `def shout(*, prompt, response, answer, metadata): return float(response.isupper())`; in YAML,
    `function: my_rewards.shout`. Coroutine functions are awaited, all samples at once.

    Args:
        function: Import path of a function that returns a number, or None to abstain.
        signature: How it is called: `own` is `f(*, prompt, response, answer, metadata)`, `trl` is TRL's
            `f(prompts, completions, completion_ids, **columns)`, which returns a list, `verl` is verl's
            `compute_score(data_source, solution_str, ground_truth, extra_info)`.
    """

    def __init__(
        self, function: Callable[..., Any], *, signature: SignatureName = "own", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.function = function
        self._signature = SIGNATURES[signature](function)

    @override
    def check_columns(self, columns: frozenset[str]) -> None:
        with about(self):
            self._signature.check_columns(columns)

    @override
    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        batches = [samples] if self._signature.batched and samples else [[sample] for sample in samples]
        results = call_all(self.function, [self._signature.arguments(batch) for batch in batches])
        return [
            score
            for batch, result in zip(batches, results, strict=True)
            for score in self._signature.scores(result, len(batch))
        ]


@final
class WorkerFunction(WorkerReward):
    """`Function` in worker processes: a call that hangs, crashes or takes all memory costs its sample alone.

    Args:
        function: Import path of a function that returns a number, or None to abstain. A module that does not
            import torch makes workers small and quick to start.
        signature: How it is called, as in `Function`; each call has one sample, of TRL's lists of one.
    """

    def __init__(
        self, function: Callable[..., Any], *, signature: SignatureName = "own", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._signature = SIGNATURES[signature](function)
        if is_async(function):
            raise ArgumentError("function is a coroutine function, which workers do not await: use Function")
        try:
            pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ArgumentError(
                f"function cannot be sent to a worker ({error}): define it in a module"
            ) from error
        if partial(function).func.__module__ == "__main__":
            raise ArgumentError(
                "function is defined in the script that runs: define it in a module of its own"
            )
        self.function = function

    @override
    def check_columns(self, columns: frozenset[str]) -> None:
        with about(self):
            self._signature.check_columns(columns)

    @override
    def call(self, sample: Sample) -> partial[Any]:
        return partial(self.function, **self._signature.arguments([sample]))

    @override
    def compute(self, calls: Sequence[partial[Any]]) -> list[Outcome]:
        return [self._scored(outcome) for outcome in super().compute(calls)]

    def _scored(self, outcome: Outcome) -> Outcome:
        """The outcome with the score for its value."""
        if outcome.error or outcome.failure:
            return outcome
        try:
            [score] = self._signature.scores(outcome.value, 1)
        except TypeError as error:
            return Outcome(error=f"TypeError: {error}")
        return replace(outcome, value=score)
