"""Checks of the gold answers: a verifier must pay 1 for each, and 0 for the one of another prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from grpo_pl.commands.doctor.findings import Finding, good
from grpo_pl.rewards.base import RewardError, RewardFunction, Verifier, score_samples
from grpo_pl.types import Prompt, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answered = Mapping[int, str]
"""Row of a prompt -> a response to it."""


def check_answers(
    rewards: Mapping[str, RewardFunction], prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase"
) -> list[Finding]:
    """What each reward, by its key, pays for right and for wrong answers."""
    return [answers(key, reward, prompts, tokenizer) for key, reward in rewards.items()]


def answers(
    key: str, reward: RewardFunction, prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase"
) -> Finding:
    """What one reward pays; only verifiers compare with a gold answer."""
    kind = type(reward).__name__
    if not isinstance(reward, Verifier):
        return good(key, f"{kind} compares with no gold answer")
    right = {n: text for n, prompt in enumerate(prompts) if (text := reward.right_response(prompt))}
    if not right:
        return good(key, f"{kind}: the data has no answers that are responses, so none is scored")
    spelled = {n: reward.extract(text) for n, text in right.items()}
    others = {n: [right[m] for m in right if spelled[m] != spelled[n]] for n in right}
    wrong = {n: texts[0] for n, texts in others.items() if texts}
    try:
        paid, paid_wrong = (scores(reward, prompts, answered, tokenizer) for answered in (right, wrong))
    except RewardError as error:
        return Finding(key, "problem", str(error), f"mend {kind}, or take another class")
    return verdict(key, kind, right, paid, wrong, paid_wrong)


def scores(
    reward: Verifier, prompts: Sequence[Prompt], answered: Answered, tokenizer: "PreTrainedTokenizerBase"
) -> dict[int, float | None]:
    """Row -> the score of a whole response to that prompt; None where the verifier abstains."""
    samples = [
        Sample(
            prompt=replace(prompts[n], opened=""),
            response=text,
            response_tokens=len(tokenizer.tokenize(text)),
            truncated=False,
        )
        for n, text in answered.items()
    ]
    return dict(zip(answered, score_samples({"": reward}, samples).by_name[""], strict=True))


def verdict(
    key: str,
    kind: str,
    right: Answered,
    paid: Mapping[int, float | None],
    wrong: Answered,
    paid_wrong: Mapping[int, float | None],
) -> Finding:
    """A problem if a gold answer is not paid 1, or most wrong ones are; a warning for single wrong ones."""
    low = [n for n, score in paid.items() if score is not None and score < 1]
    abstained = [n for n, score in paid.items() if score is None]
    high = [n for n, score in paid_wrong.items() if score]
    found = (
        f"{kind} pays 1 for {len(right) - len(low) - len(abstained)} of {len(right)} gold answers and 0 for "
    )
    found += f"{len(wrong) - len(high)} of {len(wrong)} wrong ones"
    numbers: dict[str, int | float] = {
        "right": len(right),
        "paid": len(right) - len(low) - len(abstained),
        "wrong_paid": len(high),
    }
    if low:
        found += f" ({paid[low[0]]:g} for the gold answer {right[low[0]]!r:.80})"
        fix = "take a verifier that reads such answers, or another column: `answer` of the data"
        return Finding(key, "problem", found, fix, numbers)
    if high:
        found += (
            f" ({paid_wrong[high[0]]:g} for {wrong[high[0]]!r:.80}, where {right[high[0]]!r:.80} is right)"
        )
        most = 2 * len(high) > len(wrong)
        fix = "take a stricter verifier, unless such an answer deserves credit"
        return Finding(key, "problem" if most else "warning", found, fix, numbers)
    if abstained:
        found += f"; it abstains on {len(abstained)}, for instance {right[abstained[0]]!r:.80}"
        return Finding(key, "warning", found, "such prompts are never learned from: leave them out", numbers)
    return good(key, found, **numbers)
