"""A reward for short responses, relative to the other responses to the same prompt."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from typing_extensions import override

from grpo_pl.rewards.base import RewardFunction, Verifier, score_samples
from grpo_pl.types import Prompt, Sample


@final
class GroupLength(RewardFunction):
    """Prefers the shorter of the right responses to a prompt, and no length of a wrong one; in [-0.5, 0.5].

    lambda = 0.5 - (tokens - min) / (max - min) with the least and the most tokens of the group's responses,
    right and wrong; a right response gets lambda, a wrong one min(0, lambda): short wrong answers are not
    rewarded, long ones are punished all the same. Kimi k1.5, arXiv:2501.12599, section 2.3.3 ("length
    penalty"), where it is added to the reward of the answer with a weight, after a warm-up without it (not
    here). A group whose responses have one length gets 0, as does a response that is alone, such as a greedy
    one of `ReMax`. It abstains where `correct` does; such responses are in no minimum or maximum.

    The verifier is asked once more, beside the reward that pays for right answers. Rewards differ then even
    where all answers are right, so that dynamic sampling by the total keeps such groups.

    Args:
        correct: Says whether a response is right, for instance LastNumber or MathAnswer: a score of 1.
    """

    def __init__(self, correct: Verifier, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.correct = correct

    @override
    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        verdicts = score_samples({"correct": self.correct}, samples).by_name["correct"]
        groups: dict[tuple[object, ...], list[int]] = {}
        for sample, verdict in zip(samples, verdicts, strict=True):
            if verdict is not None:
                groups.setdefault(_visit(sample.prompt), []).append(sample.response_tokens)
        return [
            None if verdict is None else relative(sample, groups[_visit(sample.prompt)], right=verdict == 1)
            for sample, verdict in zip(samples, verdicts, strict=True)
        ]

    @override
    def can_score(self, prompt: Prompt) -> bool:
        return self.correct.can_score(prompt)

    @override
    def check_columns(self, columns: frozenset[str]) -> None:
        self.correct.check_columns(columns)

    @property
    @override
    def failures(self) -> Mapping[str, int]:
        return self.correct.failures


def relative(sample: Sample, tokens: Sequence[int], *, right: bool) -> float:
    """The reward of a response among responses of these lengths."""
    shortest, longest = min(tokens), max(tokens)
    if shortest == longest:
        return 0.0
    advance = 0.5 - (sample.response_tokens - shortest) / (longest - shortest)
    return advance if right else min(0.0, advance)


def _visit(prompt: Prompt) -> tuple[object, ...]:
    """What the responses of a group share: a prompt that comes twice has another seed."""
    return prompt.seed, prompt.text, prompt.answer, *prompt.token_ids
