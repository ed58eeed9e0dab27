"""How a reward function is called: by our own signature, TRL's or verl's."""

import asyncio
import inspect
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from grpo_pl.rewards.base import as_number
from grpo_pl.system.refusal import ArgumentError
from grpo_pl.types import Prompt, Sample

SignatureName = Literal["own", "trl", "verl"]
Arguments = dict[str, Any]


class Signature(metaclass=ABCMeta):
    """The arguments and the results of a reward function; it is called by keyword.

    Raises:
        ArgumentError: The function cannot be called so, or is plainly made for another signature.
    """

    expected: ClassVar[str]
    marks: ClassVar[frozenset[str]]
    """Parameters that only this signature has."""

    def __init__(self, function: Callable[..., Any]) -> None:
        found = _found(function)
        parameters = found.parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.names = frozenset(p.name for p in named)
        self.required = frozenset(p.name for p in named if p.default is p.empty)
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.batched = False
        """Whether one call scores all samples."""
        by_position = any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters)
        if by_position or not self.fits() or self._other():
            raise ArgumentError(
                f"function={_name(function)} takes {_shown(found)}, expected {self.expected}: {self.fix()}"
            )

    @abstractmethod
    def fits(self) -> bool:
        """Whether a function with these parameters can be called."""

    @abstractmethod
    def given(self, samples: Sequence[Sample]) -> Arguments:
        """Every argument that there is for a call; of one sample unless `batched`."""

    def arguments(self, samples: Sequence[Sample]) -> Arguments:
        """The arguments that the function takes."""
        given = self.given(samples)
        return given if self.takes_all else {name: given[name] for name in self.names & given.keys()}

    def scores(self, result: Any, count: int) -> list[float | None]:
        """The scores in what a call for `count` samples returned."""
        if not self.batched:
            return [self.score(result)]
        listed = isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping)
        scores = list(result) if listed and np.ndim(result) else None
        if scores is None or len(scores) != count:
            raise TypeError(
                f"the function returned {result!r:.100}: expected a list of {count} numbers, one a response"
            )
        return [self.score(score) for score in scores]

    def score(self, result: Any) -> float | None:
        """The score of one sample."""
        return as_number(result, "the function returned")

    def check_columns(self, columns: frozenset[str]) -> None:  # noqa: B027 - most take none
        """Refuse data without a column that the function takes."""

    def fix(self) -> str:
        """What to do about a function that cannot be called so."""
        if other := self._other():
            return f"set signature to {other}"
        others = " or ".join(name for name, one in SIGNATURES.items() if one is not type(self))
        return f"write it so, or set signature to {others} if it is made for that"

    def _other(self) -> str | None:
        """The signature that the function is made for, if that is another one."""
        if self.marks & self.names:
            return None
        return next((name for name, one in SIGNATURES.items() if one.marks & self.names), None)


class Own(Signature):
    """`f(*, prompt, response, answer, metadata)`, called once for each sample.

    A function that names `messages` gets the whole conversation too; `prompt` is its last message.
    """

    expected = "(*, prompt, response, answer, metadata)"
    marks = frozenset({"response"})

    @override
    def fits(self) -> bool:
        given = {"prompt", "response", "answer", "metadata"}
        return (self.takes_all or given <= self.names) and self.required <= given | {"messages"}

    @override
    def given(self, samples: Sequence[Sample]) -> Arguments:
        [sample] = samples
        prompt = sample.prompt
        given = {
            "prompt": prompt.text,
            "response": sample.response,
            "answer": prompt.answer,
            "metadata": prompt.metadata,
        }
        return given | {"messages": prompt.messages} if "messages" in self.names else given


class TRL(Signature):
    """`f(prompts, completions, completion_ids, **columns)` of TRL 1.16, called once for all samples.

    A prompt is a conversation and its completion a list of one message where a chat template is used, else
    both are texts. Columns are those of the data, None where a row has none. The gold answer is the value in
    the data, by the name of its column, by `answer`, and by `solution` as in TRL's own rewards. What TRL
    passes besides is not there: `trainer_state`, `log_extra`, `log_metric`, `environments`.
    """

    expected = "(prompts, completions, completion_ids, **columns)"
    marks = frozenset({"prompts", "completions", "completion_ids"})
    _absent = frozenset({"trainer_state", "log_extra", "log_metric", "environments", "prompt", "completion"})

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.batched = True

    @override
    def fits(self) -> bool:
        return bool(self.takes_all or self.marks & self.names) and not self.required & self._absent

    @override
    def given(self, samples: Sequence[Sample]) -> Arguments:
        prompts = [sample.prompt for sample in samples]
        rows = [columns_of(prompt) for prompt in prompts]
        names = {name for row in rows for name in row} | self.required
        return {name: [row.get(name) for row in rows] for name in sorted(names - self._absent)} | {
            "prompts": [prompt.messages if _is_chat(prompt) else prompt.text for prompt in prompts],
            "completions": [
                [{"role": "assistant", "content": sample.response}]
                if _is_chat(sample.prompt)
                else sample.response
                for sample in samples
            ],
            "completion_ids": [_response_ids(sample) for sample in samples],
        }

    @override
    def check_columns(self, columns: frozenset[str]) -> None:
        if missing := sorted(self.required - self.marks - columns):
            has = ", ".join(map(repr, sorted(columns))) or "none beside the question and the answer"
            raise ArgumentError(
                f"function takes {', '.join(missing)}, and the data has no such column (it has {has}): "
                "rename one, or call the function in one of your own"
            )

    @override
    def fix(self) -> str:
        if absent := sorted(self.required & self._absent - {"prompt", "completion"}):
            return f"give {', '.join(absent)} a default, since only TRL's trainer has one"
        return super().fix()


class Verl(Signature):
    """`compute_score(data_source, solution_str, ground_truth, extra_info)` of verl 0.9.1, for each sample.

    It returns a number, or a mapping with the number as `score`. As verl's own functions do, it may leave out
    arguments, and it may take all samples at once, as `solution_strs` and so on. `data_source` is the column
    of this name, else empty; `ground_truth` that of the column `reward_model`, else the gold answer;
    `extra_info` the column of this name, else all columns.
    """

    expected = "(data_source, solution_str, ground_truth, extra_info)"
    marks = frozenset({"solution_str", "solution_strs"})
    _plural: ClassVar = {
        "data_source": "data_sources",
        "solution_str": "solution_strs",
        "ground_truth": "ground_truths",
        "extra_info": "extra_infos",
    }

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.batched = "solution_strs" in self.names

    @override
    def fits(self) -> bool:
        given = self._plural.values() if "solution_strs" in self.names else self._plural.keys()
        return bool(self.takes_all or self.marks & self.names) and self.required <= set(given)

    @override
    def given(self, samples: Sequence[Sample]) -> Arguments:
        rows = [_verl_row(sample) for sample in samples]
        if self.batched:
            return {many: [row[one] for row in rows] for one, many in self._plural.items()}
        [row] = rows
        return row

    @override
    def score(self, result: Any) -> float | None:
        if isinstance(result, Mapping):
            if "score" not in result:
                raise TypeError(
                    f"the function returned {result!r:.100}: expected a number or a dict with score"
                )
            result = result["score"]
        return super().score(result)


SIGNATURES: dict[SignatureName, type[Signature]] = {"own": Own, "trl": TRL, "verl": Verl}


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    inner = partial(function).func
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def call_all(function: Callable[..., Any], calls: Sequence[Arguments]) -> list[Any]:
    """What the calls return; coroutines are awaited together."""
    if not is_async(function):
        return [function(**arguments) for arguments in calls]

    async def together() -> list[Any]:
        return await asyncio.gather(*(function(**arguments) for arguments in calls))

    return asyncio.run(together())


def columns_of(prompt: Prompt) -> Arguments:
    """The columns of a row as TRL passes them, all but the question; the gold one by three names."""
    gold = _gold(prompt)
    return (
        {name: value for value in gold.values() for name in ("answer", "solution")} | prompt.metadata | gold
    )


def _gold(prompt: Prompt) -> Arguments:
    """The column of the gold answer; none where the data has no gold answers."""
    return prompt.gold or ({"answer": prompt.answer} if prompt.answer else {})


def _is_chat(prompt: Prompt) -> bool:
    return prompt.templated and bool(prompt.messages)


def _response_ids(sample: Sample) -> list[int]:
    if sample.tokens is None:
        return []
    token_ids, loss_mask = sample.tokens
    ids: list[int] = token_ids[loss_mask].tolist()
    return ids


def _verl_row(sample: Sample) -> Arguments:
    gold = _gold(sample.prompt)
    columns = sample.prompt.metadata | gold
    answer = next(iter(gold.values()), sample.prompt.answer)
    model, extra = columns.get("reward_model"), columns.get("extra_info", columns)
    if isinstance(extra, Mapping) or extra is None:  # as verl's agent loop adds to it
        extra = {**(extra or {}), "num_turns": 2, "rollout_reward_scores": {}}
    return {
        "data_source": columns.get("data_source", ""),
        "solution_str": sample.response,
        "ground_truth": model.get("ground_truth", answer) if isinstance(model, Mapping) else answer,
        "extra_info": extra,
    }


def _found(function: Callable[..., Any]) -> inspect.Signature:
    """The parameters that a call meets: a wrapper's own, unless it hands on whatever it is given."""
    met = inspect.unwrap(function, stop=lambda layer: not _hands_on(layer))
    try:
        return inspect.signature(met, follow_wrapped=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"function={_name(function)} does not show its parameters: call it in a function of your own"
        ) from error


def _hands_on(layer: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(layer, follow_wrapped=False).parameters.values()
    except ValueError:  # a wrapper in C, as that of functools.cache
        return True
    return {p.kind for p in parameters} <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def _shown(signature: inspect.Signature) -> str:
    """A signature without annotations, shortened."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    return text if len(text) <= 200 else f"{text[:200]} ...)"


def _name(function: Callable[..., Any]) -> str:
    inner = partial(function).func
    named = isinstance(inner, FunctionType | BuiltinFunctionType | MethodType | type)
    return inner.__qualname__ if named else type(inner).__name__
