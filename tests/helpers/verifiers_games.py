"""Environments of the real verifiers library."""

from typing import Any

import verifiers as vf
from datasets import Dataset, disable_progress_bars

disable_progress_bars()
ROWS = [{"question": f"Guess from {low} to {low + 9}.", "answer": str(low + 5)} for low in range(3)]


def said(completion: Any) -> list[Any]:
    return [each for each in completion if each["role"] == "assistant"]


def won(completion: Any, answer: str) -> float:
    """2 for a guess at the first try, 1 for one at the second; a last guess below 0 raises."""
    last = said(completion)[-1]["content"]
    if last.startswith("-"):
        raise KeyError(last)
    return 2.0 / len(said(completion)) if last == answer else 0.0


def calls(completion: Any) -> float:
    return sum(len(each["tool_calls"]) for each in said(completion) if each.get("tool_calls"))


def best(completions: Any) -> list[float]:
    return [1.0 for _ in completions]


class Guess(vf.MultiTurnEnv):
    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        guess = int(messages[-1]["content"])
        if guess == int(state["answer"]):
            state["final_env_response"] = told = [{"role": "user", "content": "Right."}]
            return told
        return [{"role": "user", "content": "Higher." if guess < int(state["answer"]) else "Lower."}]

    async def get_prompt_messages(self, state: Any) -> Any:
        """The conversation; after a guess of 0 the last words alone."""
        messages = await super().get_prompt_messages(state)
        return messages[-1:] if len(messages) > 2 and messages[-2]["content"] == "0" else messages


def guess(grouped: bool = False, judged: bool = False) -> vf.Environment:
    rubric = vf.JudgeRubric(judge_client=object()) if judged else vf.Rubric()
    rubric.add_reward_func(best if grouped else won)
    return Guess(dataset=Dataset.from_list(ROWS), system_prompt="Play.", max_turns=3, rubric=rubric)


def add(a: int, b: int) -> str:
    """Add.

    Args:
        a: The one.
        b: The other.
    """
    return str(a + b)


def sums() -> vf.Environment:
    rubric = vf.Rubric(funcs=[won, calls], weights=[3.0, 0.5])
    return vf.ToolEnv(
        tools=[add], dataset=Dataset.from_list([{"question": "2 + 3?", "answer": "5"}]), rubric=rubric
    )


def group() -> vf.Environment:
    return vf.EnvGroup([guess()], env_names=["guess"])
