"""Checks of the gold answers: a verifier must pay 1 for each, and 0 for the one of another prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from grpo_pl.commands.doctor.findings import Finding, good, warn_if
from grpo_pl.rewards.base import RewardError, RewardFunction, Verifier, score_samples
from grpo_pl.rewards.rules import Function, WorkerFunction
from grpo_pl.types import Prompt, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OTHER_VERIFIER = "take a verifier that reads such answers, or another column as `answer` of the data"
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
    """What one reward pays; verifiers compare with a gold answer, and functions may."""
    kind = type(reward).__name__
    if not isinstance(reward, Verifier | Function | WorkerFunction):
        return good(key, f"{kind} compares with no gold answer")
    readable = [n for n, prompt in enumerate(prompts) if reward.can_score(prompt)]
    if not readable:
        found = f"{kind} can read none of {len(prompts)} gold answers, for instance {prompts[0].answer!r:.80}"
        return Finding(key, "problem", found, OTHER_VERIFIER)
    right = {n: text for n in readable if (text := right_response(reward, prompts[n]))}
    if not right:
        return good(key, f"{kind}: the data has no answers that are responses, so none is scored")
    spelled = {n: reward.extract(text) if isinstance(reward, Verifier) else text for n, text in right.items()}
    others = {n: [right[m] for m in right if spelled[m] != spelled[n]] for n in right}
    wrong = {n: texts[0] for n, texts in others.items() if texts}
    try:
        paid, paid_wrong = (scores(reward, prompts, answered, tokenizer) for answered in (right, wrong))
    except RewardError as error:
        return Finding(key, "problem", str(error), f"mend {kind}, or take another class")
    if not isinstance(reward, Verifier):
        return tells_apart(key, kind, paid, paid_wrong)
    finding = verdict(key, kind, right, paid, wrong, paid_wrong)
    if finding.verdict == "ok" and len(right) < len(prompts):
        unread = next(prompt.answer for n, prompt in enumerate(prompts) if n not in right)
        found = (
            f"{finding.found}; it cannot read {len(prompts) - len(right)} more, for instance {unread!r:.80}"
        )
        return Finding(key, "warning", found, f"such prompts are never learned from: {OTHER_VERIFIER}")
    return finding


def right_response(reward: RewardFunction, prompt: Prompt) -> str | None:
    """A response that deserves the most, if there is one."""
    return reward.right_response(prompt) if isinstance(reward, Verifier) else prompt.answer or None


def tells_apart(
    key: str, kind: str, paid: Mapping[int, float | None], paid_wrong: Mapping[int, float | None]
) -> Finding:
    """A warning if a function pays gold answers no more than wrong ones."""
    means = [fmean(score or 0.0 for score in scores.values()) for scores in (paid, paid_wrong) if scores]
    found = f"{kind} pays {means[0]:g} on average for {len(paid)} gold answers"
    found += f" and {means[1]:g} for {len(paid_wrong)} wrong ones" if len(means) > 1 else ""
    fix = "look at what it makes of a bare gold answer, unless it judges something else"
    return warn_if(len(means) > 1 and means[0] <= means[1], key, found, fix)


def scores(
    reward: RewardFunction,
    prompts: Sequence[Prompt],
    answered: Answered,
    tokenizer: "PreTrainedTokenizerBase",
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
    low = [n for n, score in paid.items() if score is None or score < 1]
    high = [n for n, score in paid_wrong.items() if score]
    found = f"{kind} pays 1 for {len(right) - len(low)} of {len(right)} gold answers and 0 for "
    found += f"{len(wrong) - len(high)} of {len(wrong)} wrong ones"
    numbers: dict[str, int | float] = {
        "right": len(right),
        "paid": len(right) - len(low),
        "wrong_paid": len(high),
    }
    if low:
        found += f" ({paid[low[0]] or 0:g} for the gold answer {right[low[0]]!r:.80})"
        return Finding(key, "problem", found, OTHER_VERIFIER, numbers)
    if high:
        found += (
            f" ({paid_wrong[high[0]]:g} for {wrong[high[0]]!r:.80}, where {right[high[0]]!r:.80} is right)"
        )
        most = 2 * len(high) > len(wrong)
        fix = "take a stricter verifier, unless such an answer deserves credit"
        return Finding(key, "problem" if most else "warning", found, fix, numbers)
    return good(key, found, **numbers)
