"""The mathematics of the loop as pure functions of tensors, knowing nothing of models and engines."""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# ------------------------------------------------------------------------------------------------- randomness


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part: randomness as a counter, not as a state.

    Everything random in iteration i draws from `derive_seed(run_seed, what, i, ...)`, so resuming needs no
    saved state.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(size: int, seed: int) -> list[int]:
    """A uniformly random order of `range(size)`, the same for the same seed on every machine."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


# ------------------------------------------------------------------------------------------------- reductions


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of `x` where `mask` is True; 0 where nothing is."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def mean_and_std(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    ddof: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and standard deviation of the masked entries of all ranks; the divisor is `count - ddof`.

    Summed in float64. A spread within 8 roundings of the mean counts as none: the standard deviation is then
    exactly 0.
    """
    exact = torch.where(mask, x, 0.0).double()
    total, count = sum_over_ranks(torch.stack([exact.sum(), mask.sum().double()]))
    mean = total / count.clamp(min=1)
    squares = sum_over_ranks(torch.where(mask, (exact - mean) ** 2, 0.0).sum())
    std = (squares / (count - ddof).clamp(min=1)).sqrt()
    std = torch.where(std > 8 * torch.finfo(x.dtype).eps * mean.abs(), std, 0.0)
    return mean.to(x.dtype), std.to(x.dtype)


def whiten(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    sum_over_ranks: Callable[[Tensor], Tensor],
    eps: float = 1e-8,
    ddof: int = 1,
) -> Float[Tensor, "*shape"]:
    """Shift and scale `x` to mean 0 and variance 1 over the masked entries of all ranks; 0 elsewhere.

    (x - mean) / sqrt(variance + eps). Entries that are all the same become exactly 0.
    """
    mean, std = mean_and_std(x, mask, ddof, sum_over_ranks)
    return torch.where(mask & (std > 0), (x - mean) * torch.rsqrt(std**2 + eps), 0.0)


def divide_by_std(
    x: Float[Tensor, "*shape"], std: Float[Tensor, "*#shape"], eps: float
) -> Float[Tensor, "*shape"]:
    """`x / (std + eps)`, and `x` itself where nothing varies: eps alone would blow it up."""
    return x / torch.where(std > 0, std + eps, 1.0)


def group_mean(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """For each row the mean of `x` over the valid rows of its group; 0 for a group without valid rows."""
    group = torch.unique(group_ids, return_inverse=True)[1]
    zeros = x.new_zeros(len(x))
    total = zeros.index_add(0, group, torch.where(valid, x, 0.0))
    count = zeros.index_add(0, group, valid.to(x.dtype))
    return (total / count.clamp(min=1))[group]


def group_std(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"], ddof: int
) -> Float[Tensor, "N"]:
    """For each row the standard deviation over its group's valid rows; the divisor is `count - ddof`."""
    count = group_size(group_ids, valid).to(x.dtype)
    variance = group_mean((x - group_mean(x, group_ids, valid)) ** 2, group_ids, valid)
    return (variance * count / (count - ddof).clamp(min=1)).sqrt()


def group_size(group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]) -> Int[Tensor, "N"]:
    """For each row the number of valid rows in its group."""
    group = torch.unique(group_ids, return_inverse=True)[1]
    return torch.zeros_like(group).index_add(0, group, valid.to(group.dtype))[group]


def group_is_constant(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]
) -> Bool[Tensor, "N"]:
    """For each row whether all valid entries of its group are the very same number: no signal."""
    group = torch.unique(group_ids, return_inverse=True)[1]
    low = x.new_full((len(x),), math.inf).scatter_reduce(0, group, torch.where(valid, x, math.inf), "amin")
    high = x.new_full((len(x),), -math.inf).scatter_reduce(0, group, torch.where(valid, x, -math.inf), "amax")
    return (low >= high)[group]


def group_normalize(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"], ddof: int, eps: float
) -> Float[Tensor, "N"]:
    """(x - mean) / (std + eps) with the statistics of each group; 0 for invalid rows and constant groups."""
    varies = valid & ~group_is_constant(x, group_ids, valid)
    centred = x - group_mean(x, group_ids, valid)
    return torch.where(varies, divide_by_std(centred, group_std(x, group_ids, valid, ddof), eps), 0.0)


def others_mean(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """For each row the mean of `x` over the *other* valid rows of its group; 0 where there are none."""
    others, present = _others(x, group_ids, valid)
    return others.sum(-1) / present.sum(-1).clamp(min=1)


def others_std(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"], ddof: int
) -> Float[Tensor, "N"]:
    """For each row the standard deviation over the *other* valid rows of its group.

    The divisor is their count less `ddof`. Exactly 0 where they are all the same, or fewer than two.
    """
    others, present = _others(x, group_ids, valid)
    mean = others_mean(x, group_ids, valid)[:, None]
    squares = torch.where(present, (others - mean) ** 2, 0.0).sum(-1)
    low = torch.where(present, others, math.inf).amin(-1)
    high = torch.where(present, others, -math.inf).amax(-1)
    return torch.where(low < high, (squares / (present.sum(-1) - ddof).clamp(min=1)).sqrt(), 0.0)


def _others(
    x: Float[Tensor, "N"], group_ids: Int[Tensor, "N"], valid: Bool[Tensor, "N"]
) -> tuple[Float[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """For each row the entries of its group, and which of them are valid and not the row's own; else 0."""
    _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    rows = torch.arange(len(x), device=x.device)
    order = torch.argsort(group, stable=True)
    place = rows - (sizes.cumsum(0) - sizes)[group[order]]
    table = torch.full((len(sizes), int(sizes.max())), -1, device=x.device)
    table[group[order], place] = order
    members = table[group]
    present = (members >= 0) & valid[members] & (members != rows[:, None])
    return torch.where(present, x[members], 0.0), present


def max_at_k_gains(rewards: Float[Tensor, "n"], k: int) -> Float[Tensor, "n"]:
    """What each response adds to the best of k: k times the mean of max(r_i, m) - m.

    m is the greatest reward of k - 1 of the other n - 1 responses, and the mean is over all such choices.
    Summed exactly: a lesser reward with j rewards before it in ascending order is the greatest of
    C(j, k - 2) of the C(n - 1, k - 1) choices. Needs 2 <= k <= n.
    """
    n, below = len(rewards), rewards.sort().values
    chances = [math.comb(j, k - 2) / math.comb(n - 1, k - 1) for j in range(n)]
    return k * (rewards[:, None] - below).clamp(min=0) @ rewards.new_tensor(chances)


def prompt_weights(
    tokens: Int[Tensor, "N"], group_ids: Int[Tensor, "N"], sum_over_ranks: Callable[[Tensor], Tensor]
) -> Float[Tensor, "N"]:
    """What each counted token of a sequence weighs if every prompt is to count the same.

    (sequences / prompts) / (counted tokens of all responses to the prompt), where sequences and prompts
    without a counted token do not count; so the mean over sequences of weight times the sum over tokens is
    the mean over prompts, of all ranks, of the mean over tokens.
    """
    group = torch.unique(group_ids, return_inverse=True)[1]
    of_group = torch.zeros_like(tokens).index_add(0, group, tokens)
    counts = sum_over_ranks(torch.stack([(tokens > 0).sum(), (of_group > 0).sum()]))
    return counts[0] / counts[1].clamp(min=1) / of_group[group].clamp(min=1)


# ----------------------------------------------------------------------------------------------------- ratios

MAX_LOG_RATIO = 20.0
"""Log-ratios above this count as this: exp(20) is 5e8, and float32 overflows at exp(88)."""


def bounded_exp(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp(min(log_ratio, 20)), as in verl: so that no ratio is infinite and no gradient is NaN.

    Above the bound the gradient is 0.
    """
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def importance_ratio(
    logprobs: Float[Tensor, "*shape"], old_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """How many times as probable a token is now: pi / pi_old, at most exp(20)."""
    return bounded_exp(logprobs - old_logprobs)


# --------------------------------------------------------------------------------------- returns, divergences


def outcome_rewards(rewards: Float[Tensor, "N"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Put each sequence's reward on its last response token: an outcome is a process that pays at the end."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, -1).amax(-1, keepdim=True)
    return torch.where(mask & (steps == last), rewards[:, None], 0.0)


def generalized_advantages(
    rewards: Float[Tensor, "N T"],
    values: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    gamma: float,
    lam: float,
) -> Float[Tensor, "N T"]:
    """Generalised advantage estimation over the masked tokens.

    A_t = delta_t + gamma lam A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t (Schulman et al. 2016,
    arXiv:1506.02438, eq. 16), where t + 1 is the next *masked* token: tokens that the policy did not choose
    are stepped over. The value after the last token is 0, for truncated responses too (the token limit is
    part of the task).
    """
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        next_advantage = torch.where(here, advantage, next_advantage)
        next_value = torch.where(here, values[:, t], next_value)
    return advantages


def kl_k1(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference): -d, with d = ref_logprobs - logprobs.

    Schulman 2020 ("Approximating KL divergence", k1). Its *value* is unbiased under samples of the policy, of
    either sign and of high variance. Its *gradient* is grad log pi, whose expectation is 0: minimising it is
    noise. Times the ratio (`KLInLoss(gradient="unbiased")`) or in the reward it is right.
    """
    return logprobs - ref_logprobs


def kl_k2(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference): d^2 / 2, with d = ref_logprobs - logprobs.

    Schulman 2020, k2. Its *value* is biased: that of an f-divergence which agrees with the KL to second order
    in d. Its *gradient* is -d grad log pi, whose expectation is grad KL(policy || reference) exactly, as
    grad sum pi log(pi / ref) = sum pi log(pi / ref) grad log pi + sum grad pi, and the last sum is 0.
    """
    return (ref_logprobs - logprobs).square() / 2


def kl_k3(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference): exp(d) - d - 1 with d = ref_logprobs - logprobs.

    Schulman 2020, k3; DeepSeekMath, arXiv:2402.03300, eq. 4. Its *value* is unbiased under samples of the
    policy and never negative, as the mean of exp(d) is 1. Its *gradient* is (1 - exp(d)) grad log pi, whose
    expectation is -sum ref grad log pi = grad KL(reference || policy): the forward KL's, not the reverse
    one's. As in `bounded_exp`, d above 20 counts as 20.
    """
    difference = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(difference) - difference


# ------------------------------------------------------------------------------------------------- evaluation


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


# ----------------------------------------------------------------------------------------------- partitioning


def balanced_partition(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Cut rows into exactly `parts` non-empty lists, like lengths together, the dearest as cheap as can be.

    A list costs its padded tokens, rows * longest row. Rows are sorted by length and cut at the places that
    minimise the greatest cost (bisection over the cost; greedy filling is optimal for a given bound). Needs
    `parts <= len(lengths)`.
    """
    assert 1 <= parts <= len(lengths), "a minibatch has at least one sequence for each micro-batch"
    low, high = max(lengths), max(lengths) * len(lengths)
    while low < high:
        middle = (low + high) // 2
        fits = len(batches_within(lengths, middle)) <= parts
        low, high = (low, middle) if fits else (middle + 1, high)
    lists = batches_within(lengths, low)
    while len(lists) < parts:  # splitting a list never makes any list dearer
        longest = max(range(len(lists)), key=lambda i: len(lists[i]))
        rows = lists.pop(longest)
        lists += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return lists


def batches_within(lengths: Sequence[int], padded_tokens: int) -> list[list[int]]:
    """Cut rows into lists of at most so many padded tokens each, rows * longest row; the longest row first.

    Like lengths come together. A row that is longer than that is alone.
    """
    lists: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if lists and lengths[lists[-1][0]] * (len(lists[-1]) + 1) <= padded_tokens:
            lists[-1].append(row)
        else:
            lists.append([row])
    return lists


def pad_rows(rows: Sequence[Shaped[Tensor, "_"]], width: int) -> Shaped[Tensor, "N T"]:
    """Stack one-dimensional tensors of various lengths, zeros filled in on the right up to `width`."""
    out = rows[0].new_zeros(len(rows), width)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out
