"""The reward for mathematics with symbolic answers."""

from functools import partial
from typing import Any, Literal, final

from typing_extensions import override

from grpo_pl.rewards.base import Verifier
from grpo_pl.rewards.workers import WorkerReward
from grpo_pl.system.refusal import check_at_least
from grpo_pl.types import Prompt, Sample


@final
class MathAnswer(WorkerReward, Verifier):
    r"""1 if the answer equals the gold answer as mathematics, else 0 (`0.5`, `1/2` and `50%` agree).

    The answer is what the last mark holds: `\boxed{...}`, `<answer>` (or `<final>`, `<result>`), `####`, "The
    answer is" (also in Chinese, Japanese and Korean) or `"answer":` in JSON. Without a mark it is the last
    number in bold or code, else the last formula or number. Where the response thinks, or its prompt has
    opened a thought, only what follows `</think>` counts; in a thought that does not end, a box, tag or
    `####`. The gold answer is its last box, else what follows its last `####`, else the whole.

    Numbers are compared exactly, without units and currencies: `$1,234.50`, `72 km/h`, `2 1/2`, `3.5 x 10^3`,
    `1e3`, `x = 5`, `3:30 pm`. Everything else is compared by math-verify. `72 or 73` is no number. A gold
    answer that cannot be read within the workers' limits counts as unreadable.

    Args:
        max_chars: Only the last characters of a response are read, this many.
        on_error: Unlike other rewards this one abstains, since SymPy may fail on the content of a response. A
            math-verify that fails on everything is refused at construction.
    """

    def __init__(
        self, *, max_chars: int = 1_000_000, on_error: Literal["raise", "abstain"] = "abstain", **kwargs: Any
    ) -> None:
        super().__init__(on_error=on_error, **kwargs)
        check_at_least(1, max_chars=max_chars)
        self.max_chars = max_chars
        try:
            from grpo_pl.rewards import mathematics
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("MathAnswer needs math-verify: pip install grpo_pl[math]") from error
        if not mathematics.equal_in_latex(r"\boxed{\frac{1}{2}}", r"\boxed{0.5}"):
            raise RuntimeError(
                "math-verify finds 1/2 unequal to 0.5: reinstall it, pip install grpo_pl[math]"
            )

    @override
    def call(self, sample: Sample) -> partial[float | None]:
        from grpo_pl.rewards import mathematics

        prompt = sample.prompt
        return partial(mathematics.score, prompt.answer, (prompt.opened + sample.response)[-self.max_chars :])

    @override
    def can_score(self, prompt: Prompt) -> bool:
        from grpo_pl.rewards import mathematics

        return self.compute([partial(mathematics.is_readable, prompt.answer)])[0].value is True

    @override
    def extract(self, response: str) -> str | None:
        from grpo_pl.rewards import mathematics

        answer = self.compute([partial(mathematics.extract, response[-self.max_chars :])])[0].value
        return answer if isinstance(answer, str) else None
