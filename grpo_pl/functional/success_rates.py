"""Rates of success, estimated from a few responses to each problem."""

import math
from collections.abc import Sequence


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Probability that at least one of k responses is correct, estimated without bias from n >= k of them.

    1 - C(n - c, k) / C(n, k) with c correct (Chen et al. 2021, arXiv:2107.03374, eq. 1).
    """
    n, c = len(correct), sum(correct)
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Probability that the most frequent answer among k responses is correct, a tie being drawn by lot.

    The mean over all C(n, k) subsets of the n >= k responses (hence unbiased), summed exactly by counting
    instead of enumeration. `None` (no answer found) does not vote; a subset without votes is wrong.
    Self-consistency: Wang et al. 2022, arXiv:2203.11171.
    """
    counts: dict[str, int] = {}
    right: set[str] = set()
    for answer, is_correct in zip(answers, correct, strict=True):
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
            right |= {answer} if is_correct else set()
    silent = len(answers) - sum(counts.values())
    wins = 0.0
    for winner in right:
        others = [count for answer, count in counts.items() if answer != winner]
        for votes in range(1, min(counts[winner], k) + 1):
            # ways[picked, tied]: subsets of the others, none with more than `votes`, `tied` with as many
            ways = {(drawn, 0): math.comb(silent, drawn) for drawn in range(min(silent, k - votes) + 1)}
            for count in others:
                longer: dict[tuple[int, int], int] = {}
                for (picked, tied), number in ways.items():
                    for more in range(min(count, votes, k - votes - picked) + 1):
                        key = (picked + more, tied + (more == votes))
                        longer[key] = longer.get(key, 0) + number * math.comb(count, more)
                ways = longer
            chosen = sum(
                number / (tied + 1) for (picked, tied), number in ways.items() if picked == k - votes
            )
            wins += math.comb(counts[winner], votes) * chosen
    return wins / math.comb(len(answers), k)


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's confidence interval of a proportion (95 % by default), which stays inside [0, 1]."""
    if trials == 0:
        return 0.0, 1.0
    p, shrink = successes / trials, 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(max(p * (1 - p), 0.0) / trials + z * z / (4 * trials * trials))
    return max(centre - half, 0.0), min(centre + half, 1.0)
