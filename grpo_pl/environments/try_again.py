"""Questions that may be answered again."""

from typing import final

from typing_extensions import override

from grpo_pl.environments.base import Environment
from grpo_pl.environments.tools import function_at
from grpo_pl.system.refusal import check_at_least
from grpo_pl.types import Prompt, Said, Turn


@final
class TryAgain(Environment):
    """The prompt as it is; a wrong answer is told so, and another one may be given.

    The last answer pays what the verdict says of it. For the tasks of `ReasoningGym` take
    `grpo_pl.rewards.task_verifiers.verdict`.

    Args:
        verdict: Import path of a function of prompt and answer, which gives 1 for a right answer, else less.
        tries: Answers that may be given.
        feedback: What is said of a wrong answer that is not the last.
    """

    def __init__(self, verdict: str, tries: int = 3, feedback: str = "That is not right. Try again.") -> None:
        check_at_least(1, tries=tries)
        self.verdict, self.tries, self.feedback = function_at(verdict, "verdict"), tries, feedback

    @override
    def reset(self, prompt: Prompt, seed: int) -> Turn:
        self.prompt, self.left = prompt, self.tries
        return Turn()

    @override
    def step(self, said: Said) -> Turn:
        self.left -= 1
        score = float(self.verdict(self.prompt, said.text))
        if score >= 1.0 or not self.left:
            return Turn(reward=score, done=True)
        return Turn(messages=[{"role": "user", "content": self.feedback}])
